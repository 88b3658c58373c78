"""SET: the smallest weights are dropped, others grow at random."""

from __future__ import annotations

from ignite_prune.handlers.sparse_training.dynamic_sparse import DynamicSparse
from ignite_prune.regrow.base import Move
from ignite_prune.regrow.fraction import ConstantDrop, DropFraction
from ignite_prune.regrow.growth import Random
from ignite_prune.regrow.per_layer import PerLayer


class SET(DynamicSparse):
    """Sparse evolutionary training: the smallest weights of each layer are dropped, others grow at random.

    Each layer keeps its exact number of connections. A ``drop_fraction`` that is a number is constant, as published;
    ``regrow.CosineDrop(0.3)`` falls. Arguments and errors are those of :class:`DynamicSparse`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ignite.engine import create_supervised_trainer
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> pruner = SET(model, optimizer, sparsity=0.75, every=2)
        >>> pruner.attach(trainer)
        >>> _ = trainer.run([(torch.randn(2, 8), torch.randn(2, 4))] * 4, max_epochs=2)
        >>> trainer.state.sparsity["global"], pruner.masks.kept("0.weight"), pruner.masks.kept("2.weight")
        (0.75, 26, 22)
        >>> pruner
        SET(
          Sequential
          2 parameters
          sparsity 0.75
          every 2
          ConstantDrop(fraction=0.3)
          attached to Engine on ITERATION_COMPLETED (filtered) as 'sparsity'
        )

    References:
        Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
        network science", 2018, arXiv 1707.04780.
    """

    _move: Move = PerLayer(Random())

    def _falling(self, fraction: float) -> DropFraction:
        return ConstantDrop(fraction)
