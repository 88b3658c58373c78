"""Polynomial: a ramp that is fast at first and slow near the end."""

from __future__ import annotations

from dataclasses import dataclass

from ignite_prune.schedule.base import PowerRamp


@dataclass(frozen=True)
class Polynomial(PowerRamp):
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

    def _inside(self, step: float) -> float:
        return float(self.final + (self.initial - self.final) * (1 - self._progress(step)) ** self.power)
