"""RigL and SRigL: connections grow where the gradient is largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine
from torch import nn
from torch.optim import Optimizer

from ignite_prune.handlers.sparse_training.dynamic_sparse import DynamicSparse
from ignite_prune.handlers.sparse_training.gradient_listener import DueGradients
from ignite_prune.regrow.base import Move
from ignite_prune.regrow.fan_in import ConstantFanIn
from ignite_prune.regrow.growth import ByGradient
from ignite_prune.regrow.per_layer import PerLayer


class RigL(DynamicSparse):
    """Rigging the lottery: the smallest weights of each layer go, those of the largest gradients grow.

    Each layer keeps its number of connections to the unit. In the iteration of an update the step of the optimizers
    that hold selected parameters is skipped, as published, and its gradients, dense, tell what grows; in all others
    nothing is done that a static mask would not do. Gradient clipping sees the dense gradients of that iteration: clip
    norms, not values, so that the largest stay apart. With accumulated gradients the update waits for the next step. A
    layer without a gradient, or full, is left alone. A plain ``drop_fraction`` falls along half a cosine. Arguments and
    refusals are
    :class:`DynamicSparse`'s.

    Example:
        >>> import torch
        >>> from ignite.engine import create_supervised_trainer
        >>> model = nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> pruner = RigL(model, optimizer, sparsity=0.75, every=2, end=7)
        >>> pruner.attach(trainer)
        >>> _ = trainer.run([(torch.randn(2, 8), torch.randn(2, 4))] * 4, max_epochs=2)
        >>> pruner.masks.kept("weight")
        8

    References:
        Evci, Gale, Menick, Castro, Elsen, "Rigging the lottery: making all tickets winners", 2020, arXiv 1911.11134.
    """

    _move: Move = PerLayer(ByGradient())
    _listens = DueGradients

    def _is_ready(self, engine: Engine, iteration: int) -> bool:
        return self._listening.found is not None


class SRigL(RigL):
    """Structured RigL: each living neuron of a layer has the same number of inputs, and poor neurons are ablated.

    A neuron is an index of a weight's dim 0. The fan-in is what the layer's connections give each, rounded down; where
    neurons are ablated the others share their inputs. Arguments and refusals are :class:`DynamicSparse`'s, and:

    Args:
        model: as of :class:`DynamicSparse`.
        optimizer: likewise.
        params: likewise.
        min_salient: a neuron with fewer salient weights than this fraction of its inputs is ablated, in (0, 1); None
            ablates none.
        settings: the other keywords of :class:`DynamicSparse`.

    Raises:
        TypeError, ValueError: a bad argument; the model is unchanged then.

    Example:
        >>> import torch
        >>> model = nn.Linear(8, 4)
        >>> pruner = SRigL(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.75)
        >>> pruner.masks["weight"].sum(1)
        tensor([2, 2, 2, 2])

    References:
        Lasby, Golubeva, Evci, Nica, Ioannou, "Dynamic sparse training with structured sparsity", 2024,
        arXiv 2305.02299.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        params: Any = None,
        *,
        min_salient: float | None = 0.3,
        **settings: Any,
    ) -> None:
        self._move = ConstantFanIn(min_salient)
        super().__init__(model, optimizer, params, **settings)
