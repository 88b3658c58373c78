"""Power: a ramp that is slow at first and fast near the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ignite_prune.schedule.base import Ramp


@dataclass(frozen=True)
class Power(Ramp):
    r"""A power of the progress, :math:`s = s_i + (s_f - s_i) x^{power}`: slow at first and fast near the end.

    With ``power=3``, Neural Compressor's "cube". :class:`Polynomial` is the ramp of Zhu and Gupta, fast at first.

    Args:
        final: sparsity from ``end`` on.
        begin: last step of ``initial``.
        end: first step of ``final``.
        initial: sparsity up to ``begin``.
        power: the exponent, a finite number above 0.

    Raises:
        ValueError: see :class:`Polynomial`.

    Example:
        >>> [round(s, 4) for s in Power(final=0.8, begin=0, end=4).values(5)]
        [0.0, 0.0125, 0.1, 0.3375, 0.8]
    """

    power: float = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.power, bool) or not isinstance(self.power, (int, float)) or not 0 < self.power < math.inf:
            raise ValueError(f"Argument power should be a finite number above 0, but given {self.power!r}")

    def _inside(self, step: float) -> float:
        return float(self._between(self._progress(step) ** self.power))
