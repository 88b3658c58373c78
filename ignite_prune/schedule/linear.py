"""Linear: a linear ramp."""

from __future__ import annotations

from dataclasses import dataclass

from ignite_prune.schedule.base import Ramp


@dataclass(frozen=True)
class Linear(Ramp):
    """A straight line, :math:`s = s_i + (s_f - s_i) x`.

    Example:
        >>> Linear(final=0.8, begin=1, end=3).values(4)
        [0.0, 0.0, 0.4, 0.8]
    """

    def _inside(self, step: float) -> float:
        return self._between(self._progress(step))
