"""Cosine: a ramp along half a cosine wave."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ignite_prune.schedule.base import Ramp


@dataclass(frozen=True)
class Cosine(Ramp):
    r"""Half a cosine wave, :math:`s = s_i + (s_f - s_i)(1 - \cos \pi x)/2`.

    Neural Compressor's "cos" is a different curve: :math:`1 - \cos(\pi x/2)`, fastest at its end.

    Example:
        >>> [round(v, 4) for v in Cosine(final=0.8, begin=0, end=4).values(5)]
        [0.0, 0.1172, 0.4, 0.6828, 0.8]
    """

    def _inside(self, step: float) -> float:
        return self._between((1 - math.cos(math.pi * self._progress(step))) / 2)
