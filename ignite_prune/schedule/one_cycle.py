"""OneCycle: a sigmoid ramp."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ignite_prune.schedule.base import Ramp


@dataclass(frozen=True)
class OneCycle(Ramp):
    r"""One-cycle pruning, :math:`f(x) = \frac{1 + e^{-\alpha + \beta}}{1 + e^{-\alpha x + \beta}}`.

    Args:
        final: sparsity from ``end`` on.
        begin: last step of ``initial``.
        end: first step of ``final``.
        initial: sparsity up to ``begin``.
        alpha: steepness, above 0.
        beta: offset of the steep part.

    Example:
        >>> s = OneCycle(final=1.0, begin=0, end=4)
        >>> [round(s(step), 5) for step in (1, 2, 3)]
        [0.07588, 0.7313, 0.98934]

    References:
        Hubens et al., "One-cycle pruning: pruning ConvNets under a tight training budget", 2021, arXiv 2107.02086.
    """

    alpha: float = 14.0
    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 500:
                raise ValueError(f"Argument {name} should be a number of moderate size, but given {value!r}")
        if self.alpha <= 0:
            raise ValueError(f"Argument alpha should be above 0, but given {self.alpha!r}")

    def _inside(self, step: float) -> float:
        x = self._progress(step)
        rise = (1 + math.exp(-self.alpha + self.beta)) / (1 + math.exp(-self.alpha * x + self.beta))
        return self._between(rise)
