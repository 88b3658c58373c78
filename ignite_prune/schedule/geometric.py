"""Geometric: a fixed fraction of the remaining units at each update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ignite_prune.schedule.base import Schedule, check_sparsity, check_steps


@dataclass(frozen=True)
class Geometric(Schedule):
    r"""Lottery-ticket rounds: prunes a fraction ``rate`` of the remaining units every ``every`` steps.

    The density after round k is :math:`(1 - rate)^k`: 80.0, 64.0, 51.2, 41.0, ... % for ``rate = 0.2``.

    Args:
        rate: fraction of the remaining units that a round prunes, in [0, 1].
        every: number of steps of a round, above 0.

    Raises:
        TypeError: an argument is not a number.
        ValueError: ``rate`` is outside [0, 1], or ``every`` not above 0.

    Example:
        >>> [round(1 - s, 3) for s in Geometric(rate=0.2, every=1).values(4)]
        [1.0, 0.8, 0.64, 0.512]

    References:
        Frankle, Carbin, "The lottery ticket hypothesis", 2019, arXiv 1803.03635.
    """

    rate: float
    every: float
    ends: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_sparsity("rate", self.rate)
        check_steps(every=self.every)
        if self.every == 0:
            raise ValueError("Argument every should be above 0, but given 0")

    @property
    def horizon(self) -> float:
        return 10 * self.every

    def __call__(self, step: float) -> float:
        return float(1 - (1 - self.rate) ** max(step // self.every, 0))
