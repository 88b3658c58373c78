"""When an update is due: each count of an engine's event leads to exactly one update, in resumed runs too.

An Ignite event has a count (epochs, iterations), and a schedule maps it to a sparsity. Calling the update whenever the
event fires is not enough:

- A resumed run may fire an event again that the checkpoint was written in or after. A second update with the same
  count would use up evidence and random numbers, and the run would differ from one that was never interrupted. So the
  count of the last update of each event is saved, and a count that is not above it is skipped.
- A resumed run may also never fire an event again. Ignite calls handlers in the order in which they were added. A
  ``Checkpoint`` that was added before this handler is written before the update of the same event, and Ignite goes on
  with the next iteration. Such an update is made up for when the resumed run starts ("catching up"), for events whose
  count Ignite restores.
- A new run of the same engine starts counting at 0. It is recognised by its iteration, which is before that of the last
  update, or 0 without a loaded checkpoint; what was counted before is dropped.
- A checkpoint may be written by a handler of the update's own event (``MASKS_UPDATED``), so the count is recorded
  before that event is fired: the update calls ``done`` first.

Events without a count, such as those that users register without an attribute, are counted here.

A handler may be detached while its engine runs. Ignite goes on calling the handlers of the event that it is firing, and
its ``HandlersTimeProfiler`` keeps every handler in a wrapper until COMPLETED, which ``remove_event_handler`` does not
find. So all handlers are called by way of ``Attachment._call``, which does nothing from ``remove`` on, and what could
not be removed at once is removed at COMPLETED.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary, ref

from ignite.engine import CallableEventWithFilter, Engine, Events, EventsList, State

from ignite_prune._utils.pairs import as_pairs, from_pairs

AnyEvent = Events | CallableEventWithFilter | EventsList
Update = Callable[[int, Callable[[], None]], None]
_NAMES: WeakKeyDictionary[Engine, set[str]] = WeakKeyDictionary()  # published on each engine
_CAUGHT_UP = {Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED}


@dataclass
class Progress:
    """Which updates have been done; plain numbers, kept in the checkpoint.

    Args:
        done: for each event, the count of its last update.
        last: the iteration of the last update.
        since: the iteration at which the run was first seen; what was due before it is not made up for.
        loaded: a checkpoint was loaded and no run has started since.
        reached: the target has been reached, which is known of the masks and not in the checkpoint.
    """

    done: dict[str, int] = field(default_factory=dict)
    last: int = 0
    since: int | None = None
    loaded: bool = False
    reached: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers, those of ``done`` as pairs."""
        return {"done": as_pairs(self.done), "last": self.last, "since": self.since}

    @classmethod
    def from_state(cls, state: Any) -> Progress:
        """Return the progress of a checkpoint.

        Raises:
            TypeError: it does not have the form of :meth:`state_dict`.
        """
        done = from_pairs(state.get("done")) if isinstance(state, Mapping) else None
        if not isinstance(done, Mapping):
            raise TypeError("The progress of a pruner's state_dict should be a mapping with 'done', 'last' and 'since'")
        done, last, since = dict(done), state.get("last"), state.get("since")
        whole = [*done.values(), last, 0 if since is None else since]
        if not all(type(number) is int and 0 <= number < 2**62 for number in whole) or not all(
            isinstance(name, str) for name in done
        ):
            raise TypeError(
                "The progress of a pruner's state_dict should hold whole numbers of at least 0 by event name"
            )
        return cls(done, last, since, loaded=True)


class Attachment:
    """Handlers on an engine that call ``update`` once for each count of the events.

    An update whose checkpoint was written just before it is made when the resumed run starts; one that the checkpoint
    holds is not repeated when its event is fired again.

    Args:
        engine: the trainer.
        event: one event or several (``|``) that count in one unit, filtered or not.
        progress: shared with the handler, which saves it in checkpoints.
        update: called with the count, and with a function to call as soon as everything has changed, before any event
            is fired.
        name: the attribute of ``engine.state``.

    Raises:
        TypeError: ``event`` is not an event, or ``name`` not a name.
        ValueError: the engine does not know the event, several events count in different units, the name is taken.
    """

    def __init__(self, engine: Engine, event: AnyEvent, progress: Progress, update: Update, name: str) -> None:
        self.engine = engine
        self.name = _checked_name(engine, name)
        self._progress = progress
        self._update = update
        self.events = _as_list(event)
        self.is_again = False  # a new run begins where updates of an earlier one have been made
        self.is_resumed = False  # the trainer's state was loaded
        self.is_loaded = False  # the handler's state was loaded
        self._earlier = 0  # epochs that Ignite does not count after a resume
        self._ran = engine.state.times[Events.COMPLETED.name] is not None  # or is running
        self._attached, self._added = True, list[Any]()
        self._caller = self._call  # Ignite has only a weak reference to the handler of a filtered event
        try:
            self.add(Events.STARTED, self._on_started)
            for each in self.events:
                self.add(each, self._on_event, each)
        except BaseException:
            self.remove()
            raise
        _NAMES.setdefault(engine, set()).add(name)

    def add(self, event: Any, handler: Callable[..., None], *args: Any) -> None:
        """Add a handler that :meth:`remove` removes; it is called with the engine and ``args``."""
        self.engine.add_event_handler(event, self._caller, handler, *args)
        self._added.append(event)

    def remove(self) -> None:
        """Call no handler any more, and remove all of them from the engine."""
        self._attached = False
        self._take_off()
        entries = (entry for each in self.engine._event_handlers.values() for entry in each)
        if any(getattr(inspect.unwrap(handler), "__self__", None) is self for handler, *_ in entries):
            self.engine.add_event_handler(Events.COMPLETED, self._take_off_rest)
        _NAMES.get(self.engine, set()).discard(self.name)

    def _call(self, engine: Engine, handler: Callable[..., None], *args: Any) -> None:
        if self._attached:
            handler(engine, *args)

    def _take_off(self) -> None:
        for event in self._added:
            if self.engine.has_event_handler(self._caller, event):
                self.engine.remove_event_handler(self._caller, event)

    def _take_off_rest(self) -> None:
        self._take_off()
        self.engine.remove_event_handler(self._take_off_rest, Events.COMPLETED)

    def __str__(self) -> str:
        filtered = (isinstance(each, CallableEventWithFilter) and each.filter is not None for each in self.events)
        events = (_name(each) + " (filtered)" * some for each, some in zip(self.events, filtered))
        return f"attached to {type(self.engine).__name__} on {' | '.join(events)} as {self.name!r}"

    def _on_started(self, engine: Engine) -> None:
        progress, iteration = self._progress, engine.state.iteration
        self.is_loaded, self.is_again = progress.loaded, False
        self.is_resumed = iteration > 0 and not self._ran
        self._ran = True
        if iteration < progress.last or (iteration == 0 and not progress.loaded):  # a new run
            self.is_again = bool(progress.done)
            progress.done.clear()
            progress.last, progress.since, progress.reached = 0, None, False
            self._earlier = 0
        elif self.is_loaded and self.is_resumed:
            self._earlier = self._uncounted(engine)
        progress.loaded = False
        if progress.since is None:
            progress.since = iteration
        elif iteration > progress.since:
            for event in self.events:
                self._catch_up(engine, event)

    def _uncounted(self, engine: Engine) -> int:
        """Return how many epochs were done that Ignite does not count after a resume.

        Ignite divides the iterations by the epoch's length; epochs that ``terminate_epoch`` cut short, as episodes are,
        were more than that.
        """
        done = [self._progress.done.get(_name(event), 0) - (event == Events.EPOCH_STARTED) for event in self.events]
        of_epochs = all(State.event_to_attr.get(event) == "epoch" for event in self.events)
        return max(0, max(done) - engine.state.epoch) if of_epochs else 0

    def _count(self, engine: Engine, event: Any) -> int:
        return engine.state.get_event_attrib_value(event) + self._earlier

    def _catch_up(self, engine: Engine, event: Any) -> None:
        if event in State.event_to_attr and (event in _CAUGHT_UP or not _is_ignites(event)) and not self._earlier:
            count = self._count(engine, event)
            if (
                event == Events.EPOCH_COMPLETED and engine.state.epoch_length
            ):  # an epoch that was cut short is not complete
                count = min(count, engine.state.iteration // engine.state.epoch_length)
            due = not isinstance(event, CallableEventWithFilter) or event.filter is None or event.filter(engine, count)
            if due and count > self._progress.done.get(_name(event), 0):
                self._do(engine, event, count)

    def _on_event(self, engine: Engine, event: Any) -> None:
        done = self._progress.done.get(_name(event))
        if event not in State.event_to_attr:  # an event without a count: its firings are counted here
            self._do(engine, event, 1 if done is None else done + 1)
            return
        count = self._count(engine, event)
        again = done is not None and (event == Events.STARTED or (_is_ignites(event) and count <= done))
        if not again:
            self._do(engine, event, count)

    def _do(self, engine: Engine, event: Any, count: int) -> None:
        self._update(count, lambda: self._has_done(engine, event, count))

    def _has_done(self, engine: Engine, event: Any, count: int) -> None:
        self._progress.done[_name(event)] = count
        self._progress.last = engine.state.iteration


def published(engine: Engine) -> frozenset[str]:
    """Return the names in ``engine.state`` under which handlers of this package publish."""
    return frozenset(_NAMES.get(engine, ()))


def _checked_name(engine: Engine, name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise TypeError(f"Argument name should be a name for an attribute of engine.state, but given {name!r}")
    if name in vars(State()):
        raise ValueError(f"Argument name: engine.state.{name} is Ignite's own; take another name")
    if name in _NAMES.get(engine, ()):
        raise ValueError(
            f"Another PruneHandler publishes engine.state.{name} on this engine; give this one a name of its own: "
            'attach(engine, event, name="...")'
        )
    return name


def _as_list(event: Any) -> list[Any]:
    events = list(event) if isinstance(event, EventsList) else [event]
    for each in events:
        if not isinstance(each, (CallableEventWithFilter, Enum, str)):
            raise TypeError(f"Argument event should be an Ignite event (Events.EPOCH_COMPLETED), but given {each!r}")
    units = {State.event_to_attr.get(each, _name(each)) for each in events}
    if len(units) > 1:
        raise ValueError(
            f"Argument event: {' | '.join(map(_name, events))} count in different units ({', '.join(sorted(units))}), "
            "and a schedule's step can have only one"
        )
    return events


def _name(event: Any) -> str:
    return event if isinstance(event, str) else str(event.name)


def _is_ignites(event: Any) -> bool:
    return _name(event) in Events.__members__


def clock_of(engine: Engine) -> Callable[[], int | None]:
    """Return a function that returns an engine's iteration, and None when the engine is no more.

    What masks a model lives as long as the model. It must not keep the engine alive, and with it a handler that nobody
    else refers to.
    """
    held = ref(engine)

    def iteration() -> int | None:
        engine = held()
        return None if engine is None else int(engine.state.iteration)

    return iteration
