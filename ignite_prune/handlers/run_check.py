"""Warnings about a run that will not reach its handlers' targets, at its start if that is known then.

``max_epochs`` and the loader's length are known at STARTED, so the last count at which an event calls a handler can be
computed, and compared with the step at which its schedule ends. What only the run itself shows, such as an engine in
which no optimizer steps, is warned of after the first epoch of some length, and otherwise at COMPLETED.

Each kind of warning is given once by a handler. Where the length of the run is not known (an iterator, a filter of the
user's own, an event that the user fires), there is none.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ignite.engine import CallableEventWithFilter, Engine, Events
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune.handlers.run_warning import OUT_OF_REACH, RunWarning
from ignite_prune.schedule import Schedule

_ITERATIONS = {
    Events.GET_BATCH_STARTED,
    Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
}
EPOCHS = {Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED}
_MANY = 100_000  # counts of a filtered event that are tried
_ENOUGH = 100  # iterations without a step: more than gradients are accumulated over, or AMP's scaler skips


@dataclass(eq=False)
class _Steps:
    """Whether an optimizer has stepped in a run; its hooks are removed as soon as one has."""

    _hooks: list[RemovableHandle] = field(default_factory=list)
    _since: int = 0
    _seen: bool = False

    def begin(self, engine: Engine, optimizers: Sequence[Optimizer]) -> None:
        self.end()
        self._since, self._seen = engine.state.iteration, False
        self._hooks = [optimizer.register_step_post_hook(self._see) for optimizer in optimizers]

    def _see(self, *_: Any) -> None:
        self._seen = True

    def without(self, engine: Engine) -> int:
        """Return the number of iterations if there was no step, else 0."""
        if self._seen:
            self.end()
        return engine.state.iteration - self._since if self._hooks else 0

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


@dataclass(eq=False)
class RunCheck:
    """What one handler's run is going to be, and the warnings that have been given about it.

    Attributes:
        last: the last count of the handler's event in this run; None: not known.
    """

    last: int | None = None
    _told: set[str] = field(default_factory=set)
    _steps: _Steps = field(default_factory=_Steps)

    def tell(self, kind: str, message: str) -> None:
        """Warn, once for each kind."""
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(message, RunWarning, stacklevel=2)

    def start(self, engine: Engine, events: Sequence[Any], optimizers: Sequence[Optimizer]) -> None:
        """Find the last count of the events, and see from now on whether an optimizer steps."""
        self.last = last_count(engine, events)
        self._steps.begin(engine, optimizers)

    def check_events(self, who: str, events: Sequence[Any]) -> None:
        """Warn if the run ends before the handler is called."""
        if self.last == 0:
            self.tell(
                "never",
                f"{who} is attached to {' | '.join(map(_told, events))}, which this run never fires, so nothing will "
                "be done: take an event that the run reaches, or a longer run",
            )

    def check_schedule(self, schedule: Schedule, unit: str, iterations: int | None = None) -> None:
        """Warn if a schedule ends after the run.

        Args:
            schedule: the schedule.
            unit: in which the events count.
            iterations: of the whole run, where the events count epochs; None: not known, or they do not.
        """
        if not self.last or not schedule.ends or self.last >= schedule.horizon:
            return
        now, final = schedule(self.last), schedule(schedule.horizon)
        if now == final:
            return
        end = math.ceil(schedule.horizon)
        text = (
            f"{schedule} ends at step {schedule.horizon:g}, and its last step in this run is {self.last} (in {unit}): "
            f"the sparsity will be {now:.4g} instead of {final:.4g}. Run for {end} {unit} or more, now or by another "
            f"run(max_epochs=...) that continues, or let the schedule end by {self.last}"
        )
        if iterations is not None and schedule.horizon <= iterations:
            text += ". If begin and end are meant in iterations: attach(trainer, Events.ITERATION_COMPLETED)"
        self.tell("short", text)

    def check_rounds(self, rounds: int, schedules: Sequence[Schedule | None], target: float | None) -> None:
        """Warn of rounds of a pruning engine that cannot end as asked.

        Args:
            rounds: their number.
            schedules: of each group; None: it has none.
            target: the sparsity at which the rounds end; None: they end by their number.
        """
        self.last = rounds
        given = [schedule for schedule in schedules if schedule is not None]
        if target is None:
            for schedule in given:
                self.check_schedule(schedule, "rounds")
        elif len(given) == len(schedules):
            last = max(schedule(rounds) for schedule in given)
            if last < target - 1e-9:
                self.tell("target", OUT_OF_REACH.format(target=target, rounds=rounds, last=last))

    def check_unit(self, schedule: Schedule, epochs: int | None, epoch_length: int | None) -> None:
        """Warn if a ramp over iterations ends within a tenth of the first epoch, and would fit the run in epochs."""
        if not epochs or not epoch_length or not schedule.ends or not 1 < schedule.horizon <= epochs:
            return
        if schedule.horizon > epoch_length / 10 or len(set(schedule.values(math.ceil(schedule.horizon) + 1))) < 3:
            return
        self.tell(
            "unit",
            f"{schedule} ends at iteration {schedule.horizon:g} of {epoch_length} in the first epoch, as the event "
            "counts iterations. If begin and end are meant in epochs: attach(trainer, Events.EPOCH_COMPLETED), or "
            f"write end={schedule.horizon * epoch_length:g}",
        )

    def end_epoch(self, who: str, engine: Engine, completed: bool) -> None:
        """Warn if no optimizer steps in the engine; called at the end of each epoch and of the run."""
        iterations = self._steps.without(engine)
        if iterations >= (1 if completed else _ENOUGH):
            self.tell(
                "steps",
                f"{who} is attached to an engine in which none of its optimizers has made a step for {iterations} "
                "iterations. Attach it to the trainer, not to an evaluator, and give it the optimizer that trains",
            )
        if completed:
            self._steps.end()

    def stop(self) -> None:
        """Remove the hooks."""
        self._steps.end()


def last_count(engine: Engine, events: Sequence[Any]) -> int | None:
    """Return the last count at which one of the events calls a handler in the engine's run, 0 if none does.

    Returns:
        None: not known.
    """
    counts = [_last_count(engine, event) for event in events]
    known = [count for count in counts if count is not None]
    return max(known) if len(known) == len(counts) else None


def counts_iterations(event: Any) -> bool:
    """Return whether an event's count is that of iterations, and not of epochs."""
    return any(word in str(event) for word in ("ITERATION", "BATCH"))


def max_iters_of(engine: Engine) -> int | None:
    """Return ``max_iters`` of the engine's run; None: not given, as in every Ignite before 0.5.5, which has none."""
    limit = getattr(engine.state, "max_iters", None)
    return None if limit is None else int(limit)


def _told(event: Any) -> str:
    filtered = isinstance(event, CallableEventWithFilter) and event.filter is not None
    return (event if isinstance(event, str) else f"Events.{event.name}") + " (filtered)" * filtered


def iterations_of(engine: Engine) -> int | None:
    """Return the number of iterations of the engine's whole run; None: not known."""
    state, limit = engine.state, max_iters_of(engine)
    if limit is not None:
        return limit
    return None if state.max_epochs is None or state.epoch_length is None else state.max_epochs * state.epoch_length


def _last_count(engine: Engine, event: Any) -> int | None:
    state, limit = engine.state, max_iters_of(engine)
    if event in _ITERATIONS:
        total = iterations_of(engine)
    elif event in EPOCHS and limit is not None:
        whole = event == Events.EPOCH_COMPLETED  # an epoch that max_iters cuts short is not completed
        length = state.epoch_length
        total = None if not length else limit // length if whole else -(-limit // length)
    else:
        total = state.max_epochs if event in EPOCHS else None
    due = event.filter if isinstance(event, CallableEventWithFilter) else None
    if total is None or due is None:
        return total
    if due.__module__ != CallableEventWithFilter.__module__:  # the user's own, which may count its calls
        return None
    first = total if event == Events.COMPLETED else max(total - _MANY, 1)
    return next((count for count in range(total, first - 1, -1) if due(engine, count)), 0 if first == 1 else None)


def is_trial(engine: Engine) -> bool:
    """Return whether the run is one of Ignite's learning-rate finder, which is short and is undone."""
    return any(home == "ignite.handlers.lr_finder" for home in _homes(engine))


def may_be_driven(engine: Engine) -> bool:
    """Return whether the engine has handlers that may set a sparsity: the user's own, or a ParamScheduler."""
    return any(home.split(".")[0] not in ("ignite", "ignite_prune") or "param_sch" in home for home in _homes(engine))


def _homes(engine: Engine) -> list[str]:
    """Return the names of the modules that the engine's handlers are defined in."""
    handlers = (inspect.unwrap(handler) for entries in engine._event_handlers.values() for handler, *_ in entries)
    return [str(getattr(each, "__module__", "")) for each in handlers]
