"""Power: a ramp that is slow at first and fast near the end."""

from __future__ import annotations

from dataclasses import dataclass

from ignite_prune.schedule.base import PowerRamp


@dataclass(frozen=True)
class Power(PowerRamp):
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

    def _inside(self, step: float) -> float:
        return float(self._between(self._progress(step) ** self.power))
