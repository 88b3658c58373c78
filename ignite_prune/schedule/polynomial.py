"""Polynomial: a ramp that is fast at first and slow near the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ignite_prune.schedule.base import Ramp


@dataclass(frozen=True)
class Polynomial(Ramp):
    r"""Gradual pruning of Zhu and Gupta, :math:`s = s_f + (s_i - s_f)(1 - x)^{power}`.

    Prunes fast at first, while there is much redundancy, and slowly near the end. The same as ``PolynomialDecay`` of
    TensorFlow Model Optimization. Neural Compressor's "cube" is a different curve: :math:`x^3`, slow at first.

    Args:
        final: sparsity from ``end`` on.
        begin: last step of ``initial``.
        end: first step of ``final``.
        initial: sparsity up to ``begin``.
        power: the exponent, a finite number above 0.

    Raises:
        TypeError: an argument is not a number.
        ValueError: a sparsity is outside [0, 1], ``initial > final``, ``begin > end``, or ``power`` is not above 0.

    Example:
        >>> s = Polynomial(final=0.9, begin=0, end=4)
        >>> [round(s(step), 6) for step in (1, 2, 3)]
        [0.520312, 0.7875, 0.885938]

    References:
        Zhu, Gupta, "To prune, or not to prune", 2017, arXiv 1710.01878, equation 1.
    """

    power: float = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.power, bool) or not isinstance(self.power, (int, float)) or not 0 < self.power < math.inf:
            raise ValueError(f"Argument power should be a finite number above 0, but given {self.power!r}")

    def _inside(self, step: float) -> float:
        return float(self.final + (self.initial - self.final) * (1 - self._progress(step)) ** self.power)
