"""SparseMomentum: connections grow where the momentum is largest."""

from __future__ import annotations

from ignite_prune.handlers.sparse_training.dynamic_sparse import DynamicSparse
from ignite_prune.handlers.sparse_training.gradient_listener import DenseMomentum
from ignite_prune.regrow.base import Move
from ignite_prune.regrow.fraction import CosineDrop, DropFraction
from ignite_prune.regrow.redistribute import Redistribute


class SparseMomentum(DynamicSparse):
    """Sparse momentum: the smallest weights of each layer are dropped; layers and weights of large momentum grow.

    A layer's share of the growth is the mean absolute momentum of its active weights, so connections move between
    layers; the model keeps its exact number of them. The momentum is that of dense gradients, m or Adam's
    m / (√v + 1e-8), with the optimizer's coefficients; it takes one or two more copies of the weights, in memory and in
    the checkpoint, and
    gradient clipping is applied to dense gradients throughout. A ``drop_fraction`` that is a number falls along half a
    cosine, to a hundredth. As published: ``drop_fraction=0.5``, ``every`` an epoch's iterations. Arguments and errors
    are those of :class:`DynamicSparse`, and an optimizer without momentum is refused.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> pruner = SparseMomentum(model, torch.optim.Adam(model.parameters()), sparsity=0.75)
        >>> round(pruner.sparsity, 4)
        0.75

    References:
        Dettmers, Zettlemoyer, "Sparse networks from scratch: faster training without losing performance", 2019,
        arXiv 1907.04840.
    """

    _move: Move = Redistribute()
    _listens = DenseMomentum

    def _falling(self, fraction: float) -> DropFraction:
        return CosineDrop(fraction, final=0.01 * CosineDrop(fraction).fraction)
