"""QuarterCosine: a ramp along a quarter of a cosine wave."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ignite_prune.schedule.base import Ramp


@dataclass(frozen=True)
class QuarterCosine(Ramp):
    r"""A quarter of a cosine wave, :math:`s = s_i + (s_f - s_i)(1 - \cos(\pi x/2))`: slow at first, fast at the end.

    Neural Compressor's "cos". :class:`Cosine` is half a wave, slow at both ends.

    Example:
        >>> [round(s, 4) for s in QuarterCosine(final=0.8, begin=0, end=4).values(5)]
        [0.0, 0.0609, 0.2343, 0.4939, 0.8]
    """

    def _inside(self, step: float) -> float:
        return self._between(1 - math.cos(math.pi / 2 * self._progress(step)))
