"""Events that pruning fires on an engine."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from ignite.engine import Engine, EventEnum

_REGISTERED: WeakKeyDictionary[Engine, set[type[EventEnum]]] = WeakKeyDictionary()  # by register(), on each engine


class PruneEvents(EventEnum):
    """Fired by a ``PruneHandler`` on the engine it is attached to.

    - MASKS_UPDATED: after each mask update; counts in iterations.
    - TARGET_REACHED: after the update (and its MASKS_UPDATED) that brings the handler to its target; once in a run, and
      not again when it is resumed.
    """

    MASKS_UPDATED = "masks_updated"
    TARGET_REACHED = "target_reached"


class PruningEvents(EventEnum):
    """Fired by a pruning engine on itself; counts in rounds.

    - ROUND_STARTED: before a round's training; again where a killed round's training goes on, as ``EPOCH_STARTED`` is.
    - TRAINED: after a round's training and evaluation, and after the last fine-tuning; the moment for
      ``pruner.scores()``, as an update uses its evidence up.
    - PRUNED: after the round's mask update.
    - REWOUND: after rewinding.
    """

    ROUND_STARTED = "round_started"
    TRAINED = "trained"
    PRUNED = "pruned"
    REWOUND = "rewound"


def register(engine: Engine, events: type[EventEnum] = PruneEvents) -> None:
    """Register the events with the engine, once: ``Engine.has_registered_events`` is not in Ignite before 0.5.3."""
    known = _REGISTERED.setdefault(engine, set())
    if events not in known:
        engine.register_events(*events, event_to_attr=dict.fromkeys(events, "iteration"))
        known.add(events)


def fire(engine: Engine, event: EventEnum) -> None:
    """Fire ``event`` and keep the engine's last event, by which Checkpoint names its files."""
    last = engine.last_event_name
    try:
        engine.fire_event(event)
    finally:
        engine.last_event_name = last
