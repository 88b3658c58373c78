"""Event: the trainer's event that a handler is attached to, and the unit of its schedule's steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from ignite.engine import Events
from pydantic import StrictInt, field_validator, model_validator

from ignite_prune._utils.arguments import near
from ignite_prune.handlers.attachment import AnyEvent
from ignite_prune.recipe.annotations import Number
from ignite_prune.recipe.recipe_model import RecipeModel
from ignite_prune.recipe.scheduled_filter import ScheduledFilter
from ignite_prune.schedule import Held, InEpochs, Schedule

_ROUNDING = 1e-9


def unscaled(value: Any) -> Any:
    """Return a schedule in epochs that :meth:`Event.scaled` has made one of iterations; other values as they are."""
    if isinstance(value, InEpochs):
        return value.schedule
    if isinstance(value, Held) and isinstance(value.schedule, InEpochs):
        inner, length = value.schedule.schedule, value.schedule.length
        every, begin = (_whole(each / length) for each in (value.every, value.begin))
        return dataclasses.replace(value, schedule=inner, every=every, begin=begin)
    return value


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


class Event(RecipeModel):
    """An event of Ignite and its filter: ``epoch_completed``, or ``{type: iteration_completed, every: 100}``.

    Args:
        type: the name of one of Ignite's ``Events``, in any case.
        unit: what the numbers here and in schedules count: ``epochs`` or ``iterations``; None: what the event counts.
            Fractions of epochs need an ``iteration_*`` event.
        every: once in so many steps; ``schedule``: at the update steps of the ``Held`` schedules.
        begin: the step from which ``every`` counts.
        end: the last step.
        once: at this step alone.
        before: at steps below this one, as Ignite's ``before=``.
        after: at steps above this one, as Ignite's ``after=``.
    """

    type: str = "epoch_completed"
    unit: Literal["epochs", "iterations"] | None = None
    every: Number | Literal["schedule"] | None = None
    begin: Number = 0
    end: Number | None = None
    once: StrictInt | list[StrictInt] | None = None
    before: StrictInt | None = None
    after: StrictInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        names = [each.name.lower() for each in Events if each.name.startswith(("EPOCH_", "ITERATION_"))]
        names += ["started", "completed"]
        if value.lower() not in names:
            raise ValueError(f"there is no event {value!r}; {near(value.lower(), names)}")
        return value.lower()

    @field_validator("every", "begin", "end", "once", "before", "after")
    @classmethod
    def _steps(cls, value: Any, info: Any) -> Any:
        zero = info.field_name in ("begin", "after")
        for each in value if isinstance(value, list) else [value]:
            if each not in (None, "schedule") and not (0 < each < math.inf or (zero and each == 0)):
                raise ValueError(f"should be a finite number {'of at least' if zero else 'above'} 0")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Event:
        own = self._counts()
        if self.unit == "iterations" and own == "epochs":
            raise ValueError(f"{self.type} counts epochs; take iteration_completed for a unit of iterations")
        numbers = [each for each in (self.every, self.begin, self.end) if isinstance(each, float)]
        if own == "epochs" and any(each != int(each) for each in numbers):
            raise ValueError(f"{self.type} counts whole epochs; take iteration_completed with unit: epochs")
        if self.once is not None and (self.every is not None or self.before is not None or self.after is not None):
            raise ValueError("once goes with no other filter")
        return self

    def data(self) -> Any:
        """Return plain data: the name alone where nothing else is given."""
        found = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return self.type if set(found) <= {"type"} else found

    def _counts(self) -> str:
        return "iterations" if self.type.startswith("iteration") else "epochs"

    @property
    def needs_length(self) -> bool:
        """Whether the number of iterations of an epoch is needed."""
        return self.unit == "epochs" and self._counts() == "iterations"

    def factor(self, length: int | None) -> int:
        """Return how many of the event's counts one step of the unit is.

        Raises:
            ValueError: the length of an epoch is needed, and not known.
        """
        if not self.needs_length:
            return 1
        if length is None:
            raise ValueError(
                "fractions of epochs need the number of iterations of an epoch: attach(..., loader=loader), or "
                "steps_per_epoch="
            )
        return length

    def scaled(self, value: Any, length: int | None) -> Any:
        """Return a schedule of the unit as one of the event's counts; other values as they are."""
        factor = self.factor(length)
        if factor == 1 or not isinstance(value, Schedule) or isinstance(value, InEpochs):
            return value
        if isinstance(value, Held) and isinstance(value.schedule, InEpochs):
            return value
        if isinstance(value, Held):
            every, begin = (math.ceil(each * factor - _ROUNDING) for each in (value.every, value.begin))
            return dataclasses.replace(value, schedule=InEpochs(value.schedule, factor), every=every, begin=begin)
        return InEpochs(value, factor)

    def resolve(self, length: int | None, schedules: Sequence[Schedule] = ()) -> AnyEvent:
        """Return Ignite's event, with its filter.

        Args:
            length: the number of iterations of an epoch; None: not known.
            schedules: those whose update steps ``every: schedule`` stands for, scaled.

        Raises:
            ValueError: the length is needed, or there is no ``Held`` schedule.
        """
        event, factor = Events[self.type.upper()], self.factor(length)
        if self.once is not None:
            listed = self.once if isinstance(self.once, list) else [self.once]
            steps = [each * factor for each in listed]
            return event(once=steps[0] if len(steps) == 1 else steps)
        if self.every == "schedule":
            held = [each for each in schedules if isinstance(each, Held)]
            if not held or len(held) < len(schedules):
                raise ValueError("every: schedule needs schedules of type Held, which say when they change")
            return event(event_filter=ScheduledFilter(self, partial(_changes, held)))
        every = 1 if self.every is None else self.every
        if factor == 1 and isinstance(every, int) and not self.begin and self.end is None:
            limits: dict[str, Any] = {"every": self.every, "before": self.before, "after": self.after}
            found = {key: each for key, each in limits.items() if each is not None and (key, each) != ("every", 1)}
            return event(**found) if found else event
        return event(event_filter=ScheduledFilter(self, partial(self._is_due, every, factor)))

    def _is_due(self, every: float, factor: int, step: int) -> bool:
        first, last = self.begin * factor, math.inf if self.end is None else self.end * factor
        after = 0 if self.after is None else self.after * factor
        before = math.inf if self.before is None else self.before * factor
        k, spacing = math.floor((step - first) / (every * factor) + _ROUNDING), every * factor
        is_step = any(j >= 0 and math.ceil(first + j * spacing - _ROUNDING) == step for j in (k, k - 1))
        return is_step and step <= last and after < step < before


def _changes(held: Sequence[Held], step: int) -> bool:
    """Return whether a schedule has an update; that of step 0, before the first event, is made at the first."""
    return any(each.updates_at(step) or (step == 1 and each.updates_at(0)) for each in held)
