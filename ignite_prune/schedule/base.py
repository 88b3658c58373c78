"""Base classes of schedules and of ramps, and checks of their arguments."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, ClassVar

from ignite_prune._utils.extras import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Schedule(ABC):
    """A pure function from a step to the target sparsity at that step.

    Attributes:
        regrows: whether a target below the current sparsity removes the masks (dense phases); otherwise it has no
            effect.
        ends: whether the value is constant from :attr:`horizon` on; otherwise it rises as long as there are steps.
    """

    regrows: ClassVar[bool] = False
    ends: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, step: float) -> float:
        """Return the target sparsity after ``step``, in [0, 1]."""

    @property
    @abstractmethod
    def horizon(self) -> float:
        """The step from which the value is constant; of a schedule without an end, how far to plot it."""

    def values(self, n: int) -> list[float]:
        """Return the sparsities at steps 0 … n − 1.

        Raises:
            ValueError: ``n`` is not a whole number of at least 0.

        Example:
            >>> from ignite_prune import schedule
            >>> schedule.Linear(0.5, begin=0, end=2).values(4)
            [0.0, 0.25, 0.5, 0.5]
        """
        if type(n) is not int or n < 0:
            raise ValueError(f"Argument n should be a whole number of at least 0, but given {n!r}")
        return [self(step) for step in range(n)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the schedule over its steps and return the axes (requires matplotlib)."""
        needed("matplotlib")
        import matplotlib.pyplot as plt

        axes = plt.subplots(figsize=(5, 3))[1] if ax is None else ax
        values = self.values(math.ceil(self.horizon * 1.1) + 2)
        axes.step(range(len(values)), values, where="post", label=str(self))
        axes.set(xlabel="step", ylabel="sparsity", ylim=(-0.02, 1.02))
        axes.legend(fontsize="small", loc="lower right")
        return axes


@dataclass(frozen=True)
class Ramp(Schedule):
    r"""An increase from ``initial`` to ``final``: :math:`s = s_i + (s_f - s_i) f(x)`, x the progress in [0, 1].

    The value is ``initial`` at ``step <= begin`` and exactly ``final`` at ``step >= end``; ``begin == end`` is a jump.

    Args:
        final: sparsity from ``end`` on.
        begin: last step of ``initial``.
        end: first step of ``final``.
        initial: sparsity up to ``begin``.
    """

    final: float
    begin: float
    end: float
    initial: float = 0.0

    def __post_init__(self) -> None:
        check_sparsity("final", self.final)
        check_sparsity("initial", self.initial)
        check_steps(begin=self.begin, end=self.end)
        if self.initial > self.final:
            raise ValueError(
                f"Argument initial should be at most final, as masks only grow sparser, but given "
                f"initial={self.initial}, final={self.final}"
            )

    @property
    def horizon(self) -> float:
        return self.end

    def __call__(self, step: float) -> float:
        if step >= self.end:
            return float(self.final)
        if step <= self.begin:
            return float(self.initial)
        return self._inside(step)

    @abstractmethod
    def _inside(self, step: float) -> float:
        """Return the sparsity at a step strictly between ``begin`` and ``end``."""

    def _progress(self, step: float) -> float:
        return (step - self.begin) / (self.end - self.begin)

    def _between(self, fraction: float) -> float:
        return self.initial + (self.final - self.initial) * fraction


@dataclass(frozen=True)
class PowerRamp(Ramp):
    """A ramp whose curve has an exponent, a finite number above 0."""

    power: float = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.power, bool) or not isinstance(self.power, (int, float)) or not 0 < self.power < math.inf:
            raise ValueError(f"Argument power should be a finite number above 0, but given {self.power!r}")


@dataclass(frozen=True)
class OfSchedule(Schedule):
    """A schedule made of another one; what it does at its end is that one's."""

    schedule: Schedule

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"Argument schedule should be one of ignite_prune.schedule, but given {self.schedule!r}")

    @property
    def regrows(self) -> bool:  # type: ignore[override]
        """That of the schedule."""
        return self.schedule.regrows

    @property
    def ends(self) -> bool:  # type: ignore[override]
        """That of the schedule."""
        return self.schedule.ends


def check_sparsity(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless ``value`` is a number in [0, 1]; NaN is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Argument {name} should be a sparsity, a number in [0, 1], but given {value!r}")
    if not 0 <= value <= 1:  # type: ignore[operator]
        percent = f"; for {value} % write {float(value) / 100:g}" if 1 < value <= 100 else ""  # type: ignore[operator]
        raise ValueError(f"Argument {name} should be a sparsity in [0, 1], but given {value!r}{percent}")


def check_steps(**steps: object) -> None:
    """Raise TypeError or ValueError unless the steps are finite numbers of at least 0 in ascending order."""
    for name, step in steps.items():
        if isinstance(step, bool) or not isinstance(step, Real):
            raise TypeError(f"Argument {name} should be a step, a number of at least 0, but given {step!r}")
        if not 0 <= step <= sys.float_info.max:  # type: ignore[operator]
            raise ValueError(f"Argument {name} should be a finite step of at least 0, but given {step!r}")
    pairs = list(steps.items())
    for (low, a), (high, b) in pairwise(pairs):
        if a > b:  # type: ignore[operator]
            raise ValueError(f"Argument {low} should be at most {high}, but given {low}={a}, {high}={b}")
