"""InEpochs: a schedule of epochs, on an event that counts iterations."""

from __future__ import annotations

from dataclasses import dataclass

from ignite_prune.schedule.base import OfSchedule


@dataclass(frozen=True)
class InEpochs(OfSchedule):
    """A schedule whose steps are epochs, for an event that counts iterations: its step is ``iteration / length``.

    Args:
        schedule: step → sparsity, in epochs; fractions of an epoch have their own values.
        length: number of iterations of an epoch.

    Raises:
        TypeError: ``schedule`` is not a schedule, or ``length`` not an int.
        ValueError: ``length`` is below 1.

    Example:
        >>> from ignite_prune.schedule import Linear
        >>> InEpochs(Linear(0.5, begin=0, end=1), length=4).values(5)
        [0.0, 0.125, 0.25, 0.375, 0.5]
    """

    length: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.length) is not int:
            raise TypeError(f"Argument length should be a number of iterations, an int, but given {self.length!r}")
        if self.length < 1:
            raise ValueError(f"Argument length should be at least 1 iteration, but given {self.length}")

    @property
    def horizon(self) -> float:
        return self.schedule.horizon * self.length

    def __call__(self, step: float) -> float:
        return self.schedule(step / self.length)
