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
from ignite_prune.update.agreement import NOT_MADE, announced


class RigL(DynamicSparse):
    """Rigging the lottery: the smallest weights of each layer go, those of the largest gradients grow.

    Each layer keeps its exact number of connections. In the iteration of an update the step of the optimizers with
    selected parameters is skipped, as published, and its dense gradients decide what grows; every other iteration is
    that of a static mask. Gradient clipping is applied to these dense gradients: clip norms, not values, so that the
    largest stay distinct. With accumulated gradients the update is made at the next step. A layer without a gradient,
    or without a free entry, does not change. A ``drop_fraction`` that is a number falls along half a cosine. Arguments
    and errors are those of :class:`DynamicSparse`.

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

    A neuron is an index of a weight's dim 0. The fan-in is the layer's number of connections by neurons, rounded down;
    the inputs of ablated neurons are divided among the others. Arguments and errors are those of
    :class:`DynamicSparse`, and:

    Args:
        model: as of :class:`DynamicSparse`.
        optimizer: as of :class:`DynamicSparse`.
        params: as of :class:`DynamicSparse`.
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
        with announced(NOT_MADE):
            self._move = ConstantFanIn(min_salient)
        super().__init__(model, optimizer, params, **settings)
