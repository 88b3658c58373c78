"""When the snapshot that is rewound to is taken, within the first training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events

from ignite_prune.handlers.lottery.snapshot import Snapshot
from ignite_prune.handlers.lottery.training_segment import TrainingSegment


def snapshots_due(snapshot: Snapshot | None, segment: TrainingSegment) -> list[Any]:
    """Take a snapshot that is due now; return the handler that takes one that is due later in this segment.

    It is added last, so that it is called after every learning-rate scheduler.
    """
    if snapshot is None or snapshot.taken:
        return []
    moment = snapshot.rewind.iteration
    if segment.position == moment:
        snapshot.take()
        return []

    def take(trainer: Engine) -> None:
        if segment.position == moment:
            snapshot.take()

    ends_epoch = moment % segment.epoch_length == 0
    return [(Events.EPOCH_COMPLETED if ends_epoch else Events.ITERATION_COMPLETED, take)]


def check_taken(snapshot: Snapshot | None, segment: TrainingSegment) -> None:
    """Raise ValueError if the segment has ended without the snapshot."""
    if snapshot is not None and not snapshot.taken:
        raise ValueError(
            f"Rewinding to iteration {snapshot.rewind.iteration} is out of reach: it was never snapshotted, as the "
            f"first round's training ended at iteration {segment.position}; nothing was pruned"
        )


def check_held(snapshot: Snapshot | None, state: Mapping[str, Any] | None, iteration: int | None) -> None:
    """Raise ValueError if a checkpoint of a round that has begun lacks the snapshot.

    Args:
        snapshot: of the engine that loads it.
        state: of the checkpoint's snapshot.
        iteration: of the training that the checkpoint was written in, which may be before the moment; None: in none.
    """
    if snapshot is None or state is None or (iteration is not None and iteration <= snapshot.rewind.iteration):
        return
    if state.get("held") is None:
        raise ValueError("The checkpoint's pruning engine is damaged: it lacks the snapshot that it rewinds to")
