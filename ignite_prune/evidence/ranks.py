"""Evidence over ranks, each of which gathers from its own data: sums over ranks, and checkpoints of all ranks.

For a mask update the sums of all ranks are added up, with the same result on every rank (:func:`totals_over_ranks`).

A checkpoint is usually the file of rank 0. So ``state_dict()`` holds the evidence of all ranks, if all ranks call it,
as Ignite's ``Checkpoint`` does (:class:`RankStates`); a resumed rank takes its own part (:func:`own_part`), and adds up
in the same order as without the interruption. A user may call ``state_dict()`` on one rank alone, where a collective
would wait for ever: ranks therefore meet at a key of the process group's store first, and a rank that waits in vain
writes its own part.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ignite_prune._utils.distributed import all_gather, all_reduce, broadcast, raise_together, rank, world_size
from ignite_prune._utils.nested import mapped
from ignite_prune._utils.shard import is_sharded
from ignite_prune._utils.state import checked_int
from ignite_prune.evidence.running_sums import RunningSums, Totals, Zeros

FAILED = "Gathering evidence failed on another rank; nothing was changed on this one"
PATIENCE = 10.0
"""Seconds for which a rank waits for the others to call ``state_dict()``; a tenth of it once that was in vain."""


def totals_over_ranks(record: RunningSums, zeros: Zeros, key: str, replicated: bool, shared: bool) -> Totals:
    """Return sums and counts over all ranks; a rank without data for a parameter adds nothing.

    Args:
        record: this rank's.
        zeros: returns zeros in the form of a parameter's sum, by its name.
        key: of the evidence, for the error if ranks use a parameter in ways that do not add up.
        replicated: all ranks have the same sums (of averaged gradients), so the result is their mean.
        shared: all ranks have the same sums (of the model's own values), so the result is one rank's.
    """
    if world_size() == 1 or (record.by_part and any(map(is_sharded, record.parameters.values()))):
        return record.sums, record.counts
    sums, counts = dict[str, Tensor](), dict[str, float]()
    gathered = all_gather((record.stale, {n: (c, record.forms.get(n, ())) for n, c in record.counts.items() if c > 0}))
    none_new = all(stale for stale, _ in gathered)  # stale sums count only if no rank has new ones
    ranks = [counted if none_new or not stale else {} for stale, counted in gathered]
    equals = len(ranks) if replicated else 1
    for name in record.parameters:
        having = [each for each, counted in enumerate(ranks) if name in counted]
        if not having:
            continue
        form, *others = {ranks[each][name][1] for each in having}
        if others:
            raise ValueError(
                f"{key} of parameter {name!r} cannot be added up: ranks use it in different ways (with other groups or "
                "heads, or the other way round)"
            )
        if form:
            record.forms[name] = form
        own = _own_sum(record, zeros, name, having)
        if shared:  # a mean of equal values would be rounded
            sums[name], counts[name] = broadcast(own, having[0]), 1.0
        else:
            sums[name] = all_reduce(own).div_(equals)
            counts[name] = sum(ranks[each][name][0] for each in having) / equals
    return sums, counts


def _own_sum(record: RunningSums, zeros: Zeros, name: str, having: Sequence[int]) -> Tensor:
    """Return this rank's sum, or zeros if it has none."""
    own, error = record.sums.get(name) if rank() in having else None, None
    try:
        own = zeros(name) if own is None else own
    except Exception as raised:  # this rank may lack the memory
        error = raised
    if len(having) < world_size():
        raise_together(error, FAILED)
    assert own is not None
    return own


class RankStates:
    """Gathers the states of one handler's evidence over ranks.

    Args:
        key: identifies the handler's evidence; equal on all ranks.
    """

    def __init__(self, key: str) -> None:
        self._key, self._calls, self._patience = key, dict[int, int](), PATIENCE

    def gathered(self, states: list[dict[str, Any]], iteration: int) -> list[dict[str, Any]]:
        """Return the states with those of the other ranks as ``"others"``.

        If not all ranks call this, the states are this rank's, with its number as ``"rank"``, and a warning says so.

        Args:
            states: this rank's.
            iteration: of the training, which tells calls of different moments apart.
        """
        if self._meet(iteration):
            ranks = all_gather(mapped(states, lambda tensor: tensor.cpu()))
            return [
                {**first, "others": {str(number): other for number, other in enumerate(others, start=1)}}
                for first, *others in zip(*ranks)
            ]
        if any(state["counts"] and not state["stale"] for state in states):
            warnings.warn(
                f"state_dict() was called on rank {rank()}, but not on all {world_size()} ranks at the same time: it "
                "holds the evidence that this rank has gathered since the last mask update, and a run that is resumed "
                "from it lacks that of the others. Call it on every rank, as Ignite's Checkpoint does, and write the "
                "file on one",
                stacklevel=2,
            )
        return [{**state, "rank": rank()} for state in states]

    def _meet(self, iteration: int) -> bool:
        """Return whether all ranks have come here; the answer is the same on each of them."""
        store = dist.distributed_c10d._get_default_store()
        while True:
            call = self._calls.get(iteration, 0)
            self._calls[iteration] = call + 1
            arrived, outcome = (f"{self._key}/{iteration}/{call}/{what}" for what in ("arrived", "outcome"))
            if store.add(arrived, 1) == world_size():
                store.compare_set(outcome, "", "all")
            elif not self._appears(store, outcome) and store.compare_set(outcome, "", "some") == b"some":
                self._patience = PATIENCE / 10
                return False
            if store.get(outcome) == b"all":
                self._patience = PATIENCE
                return True
            # The others have given this call up: they may come to the next one.

    def _appears(self, store: Any, key: str) -> bool:
        until, pause = time.monotonic() + self._patience, 0.0005
        while not store.check([key]):  # wait() of a TCPStore writes to stderr when its time is up
            if time.monotonic() > until:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return True


def parts_of(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the states of each rank in a state.

    Raises:
        ValueError: it is damaged.
    """
    others = state.get("others", {})
    if not isinstance(others, Mapping) or set(others) != {str(number + 1) for number in range(len(others))}:
        raise ValueError("The checkpoint's evidence is damaged: it lacks a rank's")
    checked_int("evidence 'rank'", state.get("rank", 0))
    return [state, *(others[str(number + 1)] for number in range(len(others)))]


def own_part(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what this rank takes of the checked states of all ranks that wrote a checkpoint.

    With as many ranks as then, each takes its own. Otherwise rank 0 takes the sum, and the others add nothing to it. A
    state that one rank has written alone is taken by that rank.
    """
    if len(parts) == world_size():
        return parts[rank()]
    if rank() == (parts[0].get("rank", 0) if world_size() > 1 else 0):
        return _merged(parts)
    return {**parts[0], "sums": {}, "counts": {}}


def _merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sum of states; used-up ones count only if there are no others."""
    sums, counts = dict[str, Tensor](), dict[str, float]()
    new = [part for part in parts if not part.get("stale")] or parts
    for part in new:
        for name, total in part["sums"].items():
            if name in sums and sums[name].shape != total.shape:
                raise ValueError(f"The checkpoint's evidence of {name!r} differs in shape between ranks")
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0.0) + part["counts"][name]
    forms = {name: form for part in new for name, form in part.get("forms", {}).items()}
    return {**new[0], "sums": sums, "counts": counts, **({"forms": forms} if "forms" in new[0] else {})}
