"""TopK: the largest entries of an activation, by any sparsity pattern."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.sparsity import as_unit_fraction
from ignite_prune.activation.base import Sparsifier
from ignite_prune.activation.learnt import Learnt, with_slope
from ignite_prune.activation.samples import Samples
from ignite_prune.pattern import Pattern, Unstructured
from ignite_prune.schedule import Schedule


class TopK(Sparsifier):
    """Keeps the entries, or units of a pattern, of largest absolute value in each sample's activation.

    Args:
        amount: the amount to drop: a sparsity (float), a number of units (int), a schedule of the sparsity, which a
            handler evaluates, or :class:`Learnt`. A sparsity is rounded to a number of units, half to even.
        pattern: pattern of one sample; its dimensions do not include the batch dimension, so ``pattern.Channel()``
            drops channels.
        period: number of samples over which duty cycles are averaged.
        dim: the dimension of the units whose duty cycles are recorded.

    Raises:
        TypeError, ValueError: an argument is out of range, or the pattern cannot reach the sparsity; in forward, there
            are fewer units than to drop, or the pattern does not support the shape.

    Example:
        >>> TopK(0.5)(torch.tensor([[1.0, -4.0, 3.0, 0.5]]))
        tensor([[ 0., -4.,  3.,  0.]])
        >>> from ignite_prune import pattern
        >>> TopK(1, pattern.Channel())(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
        tensor([[[1., 2.],
                 [0., 0.]]])
    """

    learnt: Learnt | None

    def __init__(
        self,
        amount: float | Schedule | Learnt,
        pattern: Pattern = Unstructured(),
        *,
        period: int = 1000,
        dim: int = 1,
    ) -> None:
        if not isinstance(pattern, Pattern):
            raise TypeError(f"Argument pattern should be one of ignite_prune.pattern, but given {pattern!r}")
        if isinstance(amount, bool) or not isinstance(amount, (Real, Schedule, Learnt)):
            raise TypeError(f"Argument amount should be a number, a schedule or Learnt(), but given {amount!r}")
        self._units = amount if isinstance(amount, int) else None
        if self._units is not None and self._units < 0:
            raise ValueError(f"Argument amount should be at least 0 units, but given {amount}")
        self._pattern = pattern
        super().__init__(_at_first(amount), period, dim)
        as_unit_fraction(pattern, amount(amount.horizon) if isinstance(amount, Schedule) else self.sparsity)
        self.learnt = amount if isinstance(amount, Learnt) else None

    def pruned(self, units: int, sparsity: float) -> int:
        """Return how many of a sample's ``units`` are dropped.

        Raises:
            ValueError: there are fewer units, or the pattern cannot reach the sparsity.
        """
        if self._units is None:
            return round(as_unit_fraction(self._pattern, sparsity) * units)
        if self._units > units:
            raise ValueError(f"Argument amount of {self} should be at most {units} units, but given {self._units}")
        self.reach(self._units / max(units, 1) * self._pattern.share)
        return self._units

    def select(self, x: Tensor) -> Tensor:
        samples = Samples(self._pattern, x.abs())
        return samples.keep(samples.units - self.pruned(samples.units, self.sparsity))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with all entries but the winners exactly 0; a learnt amount gets a gradient."""
        if self.learnt is None:
            return super().forward(x)
        self.check(x)
        amount = self.learnt()
        self.sparsity = min(amount.item(), self._pattern.share)
        low, high = self._around(self.learnt.width)
        won, moved = self.decide(x, lambda: self._select_around(x, low, high))
        return with_slope(torch.where(won, x, 0), x, amount, moved, high - low)

    def _around(self, width: float) -> tuple[float, float]:
        return max(self.sparsity - width, 0.0), min(self.sparsity + width, self._pattern.share)

    def _select_around(self, x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Return the winners, and the entries that win at the sparsity ``low`` but not at ``high``."""
        samples = Samples(self._pattern, x.abs())
        now, many, few = (
            samples.keep(samples.units - self.pruned(samples.units, each)) for each in (self.sparsity, low, high)
        )
        return now, many & ~few

    def extra_repr(self) -> str:
        amount = f"{self._units} units" if self._units is not None else f"{self.sparsity:g}"
        return f"{amount}, {self._pattern}"


def _at_first(amount: Any) -> float | Schedule:
    if isinstance(amount, Schedule):
        return amount
    if isinstance(amount, Learnt):
        return amount.value
    return 0.0 if isinstance(amount, int) else amount
