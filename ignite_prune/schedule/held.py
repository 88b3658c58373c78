"""Held: a schedule whose value changes at some steps only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ignite_prune.schedule.base import OfSchedule, check_steps

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Held(OfSchedule):
    r"""The value that a schedule had at the last of the steps :math:`begin + k \cdot every`.

    This is what a pruner does that updates its masks at a frequency, and holds them in between. Before ``begin`` the
    sparsity is 0.

    Args:
        schedule: the schedule that is held.
        every: number of steps between two updates, above 0; it need not be whole.
        begin: the first step with an update.
        to_end: whether the schedule's last step has an update too, so that its final value is reached there; otherwise
            no update follows that step, and the value of the one before it stays.

    Raises:
        TypeError: ``schedule`` is not a schedule, or a step is not a number.
        ValueError: ``every`` is not above 0, or ``begin`` below 0.

    Example:
        >>> from ignite_prune.schedule import Linear
        >>> Held(Linear(0.5, begin=0, end=5), every=2).values(7)
        [0.0, 0.0, 0.2, 0.2, 0.4, 0.5, 0.5]
    """

    every: float
    begin: float = 0
    to_end: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(every=self.every)
        check_steps(begin=self.begin)
        if self.every == 0:
            raise ValueError("Argument every should be a number of steps above 0, but given 0")
        if not isinstance(self.to_end, bool):
            raise TypeError(f"Argument to_end should be a bool, but given {self.to_end!r}")

    @property
    def horizon(self) -> float:
        return max(self.schedule.horizon, self.begin)

    def last_update(self, step: float) -> float | None:
        """Return the last step with an update up to ``step``; None before the first."""
        limit = self.horizon if self.ends else math.inf
        if self.to_end and step >= limit:
            return limit
        k = math.floor((min(step, limit) - self.begin) / self.every + _ROUNDING)
        return self.begin + k * self.every if k >= 0 else None

    def updates_at(self, step: int) -> bool:
        """Return whether there is an update after the step before this one, and up to this one."""
        return self.last_update(step) != self.last_update(step - 1)

    def __call__(self, step: float) -> float:
        at = self.last_update(step)
        return 0.0 if at is None else self.schedule(at)
