"""Events that pruning fires on an engine."""

from __future__ import annotations

from ignite.engine import Engine, EventEnum


class PruneEvents(EventEnum):
    """Fired by a ``PruneHandler`` on the engine it is attached to.

    - MASKS_UPDATED: after each mask update; counts in iterations.
    """

    MASKS_UPDATED = "masks_updated"


def register(engine: Engine) -> None:
    """Make the engine know the events; again does nothing."""
    if not engine.has_registered_events(PruneEvents.MASKS_UPDATED):
        engine.register_events(*PruneEvents, event_to_attr={PruneEvents.MASKS_UPDATED: "iteration"})


def fire(engine: Engine, event: PruneEvents) -> None:
    """Fire ``event`` and leave no trace: Checkpoint names its files by the engine's last event."""
    last = engine.last_event_name
    try:
        engine.fire_event(event)
    finally:
        engine.last_event_name = last
