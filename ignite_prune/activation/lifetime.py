"""Lifetime sparsity: each unit speaks up for few samples of a batch."""

from __future__ import annotations

from torch import Tensor

from ignite_prune.activation.base import Sparsifier, as_sparsity_of
from ignite_prune.activation.row_top_k import top_of_rows
from ignite_prune.schedule import Schedule


class Lifetime(Sparsifier):
    """Each unit keeps its largest values over the minibatch; of a feature map its largest position competes alone.

    No unit can be dead. In evaluation, where a sample should not depend on its batch, it lets everything through.

    Args:
        density: the share of the batch's samples that a unit keeps, in (0, 1], rounded half to even, at least one; or a
            schedule of the sparsity.
        period: over how many samples the duty cycle is averaged.

    Raises:
        TypeError, ValueError: a bad argument; in a forward, not (samples, units, *space).

    Example:
        >>> import torch
        >>> Lifetime(density=1 / 3)(torch.tensor([[1.0, 9.0], [3.0, 0.0], [2.0, 4.0]]))
        tensor([[0., 9.],
                [3., 0.],
                [0., 0.]])

    References:
        Makhzani, Frey, "Winner-take-all autoencoders", 2015, arXiv 1409.2752.
    """

    def __init__(self, density: float | Schedule, period: int = 1000) -> None:
        super().__init__(as_sparsity_of(density), period)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with the losers exactly 0 in training, x in evaluation."""
        if self.training:
            return super().forward(x)
        self.check(x)
        return x

    def select(self, x: Tensor) -> Tensor:
        maps = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
        k = max(round((1 - self.sparsity) * len(x)), 1)
        best = maps.amax(dim=2)  # NaN where there is one
        won = top_of_rows(best.t(), k).t().unsqueeze(2)
        if maps.shape[2] > 1:
            won = won & top_of_rows(maps.flatten(0, 1), 1).view(maps.shape)
        return won.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"density={1 - self.sparsity:g}"
