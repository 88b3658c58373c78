"""Exponential: a ramp whose density falls by a constant factor per step."""

from __future__ import annotations

from dataclasses import dataclass

from ignite_prune.schedule.base import Ramp


@dataclass(frozen=True)
class Exponential(Ramp):
    r"""The density falls by a constant factor per step, :math:`s = 1 - (1 - s_i)\left(\frac{1-s_f}{1-s_i}\right)^x`.

    Neural Compressor's default ("exp").

    Raises:
        ValueError: see :class:`Polynomial`; also if ``final`` is 1, which no constant factor reaches.

    Example:
        >>> [round(v, 3) for v in Exponential(final=0.75, begin=0, end=2).values(3)]
        [0.0, 0.5, 0.75]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final == 1:
            raise ValueError("Argument final should be below 1: no constant factor brings the density to 0; given 1")

    def _inside(self, step: float) -> float:
        return float(1 - (1 - self.initial) * ((1 - self.final) / (1 - self.initial)) ** self._progress(step))
