"""The first meeting of the ranks over objects that each rank has constructed.

A constructor is no collective: one rank alone may construct a pruner, so a constructor that fails must not wait for the
other ranks. It leaves a note in the store of the process group instead. The other ranks read the notes when they use
their objects together for the first time, before the first collective: there they would wait for a rank that does not
come.

A meeting has an outcome, which is written once: the last rank that comes writes that all have met, or a rank that waits
for one that has failed writes the cause. A rank that has failed as often as the one that waits is not a reason: all
ranks may have caught the error and tried again. One that has failed more often is given some seconds to try again, and
one that comes after all is taken to have done so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from ignite_prune._utils.distributed import KNOWN, cause_of, rank, world_size

_PATIENCE = 3.0  # seconds
_PAUSE = 0.01  # seconds from one look into the store to the next, at first
_MET = "met"


def note_failure(error: Exception) -> None:
    """Leave a note for the other ranks that a constructor has failed on this one; nothing is waited for."""
    if world_size() > 1:
        try:
            store = _store()
            store.set(f"cause/{rank()}", cause_of(error))
            store.add(f"failures/{rank()}", 1)
        except (RuntimeError, ValueError):  # the process that holds the store has ended, or there is none
            return


def meet_first(error: Exception | None, message: str) -> None:
    """Wait until every rank has come, or one is known to have failed before it could come.

    Args:
        error: of this rank, which is raised at a later meeting of all.
        message: begins the text of the error where another rank has failed.

    Raises:
        ValueError: another rank's constructor failed; the text ends with its number, and the type and message of its
            error; or a rank has not come within the timeout of the process group. ``error``, if it is given, is raised
            instead.
    """
    if world_size() == 1:
        return
    store = _store()
    number, before = _number(store)
    key = f"outcome/{number}"
    store.set(f"here/{number}/{rank()}", "")
    if store.add(f"arrived/{number}", 1) == world_size():
        _decide(store, key, _MET)
    outcome = _waited_for(store, number, before)
    if outcome["text"] != _MET:
        raised = error or ValueError(f"{message}: {outcome['text']}")
        note_failure(raised)
        vars(raised)[KNOWN] = True
        raise raised


def _store() -> Any:
    return dist.distributed_c10d.PrefixStore("ignite_prune", dist.distributed_c10d._get_default_store())


def _number(store: Any) -> tuple[int, list[int]]:
    """Return the number of this rank's next meeting, and the failures of each rank that are known before it."""
    before = [0] * world_size()
    while True:
        number = int(store.add(f"meetings/{rank()}", 1))
        outcome = _outcome(store, number)
        if outcome is None or outcome["rank"] != rank():
            earlier = _outcome(store, number - 1)
            return number, before if earlier is None else earlier["failures"]
        # The others have waited for this rank in vain, so that meeting is over.


def _waited_for(store: Any, number: int, before: Sequence[int]) -> dict[str, Any]:
    began, since, pause = time.monotonic(), dict[int, float](), _PAUSE
    while True:
        outcome = _outcome(store, number)
        if outcome is not None:
            return outcome
        now, failures = time.monotonic(), _failures(store)
        mine = failures[rank()] - before[rank()]
        missing = [each for each in range(world_size()) if not store.check([f"here/{number}/{each}"])]
        for each in missing:
            if failures[each] - before[each] > mine and now - since.setdefault(each, now) > _PATIENCE:
                cause = store.get(f"cause/{each}").decode()
                _decide(store, f"outcome/{number}", f"rank {each} raised {cause}", each)
        if now - began > store.timeout.total_seconds():
            text = f"ranks {missing} have not come within {store.timeout.total_seconds():.0f} s"
            _decide(store, f"outcome/{number}", text)
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _failures(store: Any) -> list[int]:
    return [int(store.add(f"failures/{each}", 0)) for each in range(world_size())]


def _decide(store: Any, key: str, text: str, failed: int | None = None) -> None:
    outcome = {"text": text, "rank": failed, "failures": _failures(store)}
    store.compare_set(key, "", json.dumps(outcome))


def _outcome(store: Any, number: int) -> dict[str, Any] | None:
    key = f"outcome/{number}"
    return dict(json.loads(store.get(key))) if store.check([key]) else None
