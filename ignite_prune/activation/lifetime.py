"""Lifetime: lifetime sparsity, in which each unit is active for few samples of a batch."""

from __future__ import annotations

from torch import Tensor

from ignite_prune.activation.base import Sparsifier, as_sparsity_of
from ignite_prune.activation.row_top_k import top_of_rows
from ignite_prune.schedule import Schedule


class Lifetime(Sparsifier):
    """Keeps the largest values of each unit over the minibatch; a feature map takes part with its largest position.

    No unit can be dead. In evaluation, in which a sample should not depend on its batch, everything is passed.

    Args:
        density: fraction of the batch's samples for which a unit is active, in (0, 1], rounded half to even, at least
            one sample; or a schedule of the sparsity.
        period: number of samples over which duty cycles are averaged.

    Raises:
        TypeError, ValueError: an argument is out of range; in forward, the input is not ``(samples, units, *space)``.

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
        """Return ``x`` with all entries but the winners exactly 0 in training, and ``x`` in evaluation."""
        if self.training:
            return super().forward(x)
        self.check(x)
        return x

    def select(self, x: Tensor) -> Tensor:
        maps = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
        k = max(round((1 - self.sparsity) * len(x)), 1)
        best = maps.amax(dim=2)  # propagates NaN
        won = top_of_rows(best.t(), k).t().unsqueeze(2)
        if maps.shape[2] > 1:
            won = won & top_of_rows(maps.flatten(0, 1), 1).view(maps.shape)
        return won.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"density={1 - self.sparsity:g}"
