"""Which units stay, of parameters whose parts lie on several ranks: the pools of all groups in the same messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.sharded_rows import RowTask, keep_top_of_rows_of_all
from ignite_prune._utils.sharded_top import Ranking, Scored, keep_top_of_all
from ignite_prune._utils.sparsity import as_unit_fraction
from ignite_prune.update.sharded.division import ShardDivision, divided
from ignite_prune.update.sharded.job import Job
from ignite_prune.update.sharded.sharded_channels import is_split_beyond


def chosen(jobs: Sequence[Job], exchange: Exchange) -> list[tuple[Job, Tensor]]:
    """Return the new mask of this rank's part of each parameter that gets sparser."""
    pools, floors, by_row = list[Ranking](), [0] * len(jobs), dict[int, int]()
    places = {id(job.layer): index for index, job in enumerate(jobs)}
    for pool, bounds in divided(_divisions(jobs), exchange):
        least = pool.floors or (0,) * len(pool.layers)
        keep = max(pool.keep, sum(min(floor, layer.living) for floor, layer in zip(least, pool.layers)))
        indices = [places[id(layer)] for layer in pool.layers]
        if keep >= sum(layer.living for layer in pool.layers):
            continue
        if len(indices) == 1 and jobs[indices[0]].rows is not None:  # how many stay is known
            by_row[indices[0]] = keep
            continue
        pools.append(Ranking(indices, keep, bounds))
        for index, floor in zip(indices, least):
            floors[index] = floor
    found = keep_top_with_floors([job.tensor for job in jobs], pools, floors, exchange)
    by_row |= _counts({i: units for i, units in found.items() if jobs[i].rows is not None}, jobs, exchange)
    masks = {index: jobs[index].masked(units) for index, units in found.items() if index not in by_row}
    tasks = [_task(jobs[index], keep) for index, keep in sorted(by_row.items())]
    masks |= zip(sorted(by_row), keep_top_of_rows_of_all(tasks, exchange))
    return [(jobs[index], masks[index]) for index in sorted(masks)]


def _counts(found: Mapping[int, Tensor], jobs: Sequence[Job], exchange: Exchange) -> dict[int, int]:
    """Return how many units stay of each parameter, over all ranks."""
    if not found:
        return {}
    own = [int(units.count_nonzero()) if jobs[i].tensor.part.counted else 0 for i, units in found.items()]
    return dict(zip(found, exchange.sum(torch.tensor(own, dtype=torch.int64)).tolist()))


def _task(job: Job, keep: int) -> RowTask:
    assert job.rows is not None
    is_split = is_split_beyond(job.parameter, [job.rows])
    return RowTask(job.tensor.scores, job.tensor.alive, job.tensor.part, job.rows, keep, is_split)


def _divisions(jobs: Sequence[Job]) -> list[ShardDivision]:
    divisions = []
    for update in {id(job.update): job.update for job in jobs}.values():
        mine = [job for job in jobs if job.update is update]
        assert update.target is not None
        fraction = as_unit_fraction(update.group["pattern"], update.target)
        layers, tensors = [job.layer for job in mine], [job.tensor for job in mine]
        divisions.append(ShardDivision(update.group["allocation"], layers, tensors, fraction))
    return divisions


def keep_top_with_floors(
    tensors: Sequence[Scored], pools: Sequence[Ranking], floors: Sequence[int], exchange: Exchange
) -> dict[int, Tensor]:
    """Return :func:`.keep_top_of_all`'s masks, but at least ``floors[i]`` entries of tensor i.

    The best ``floors[i]`` of each tensor stay in any case; the rest of a pool's number are the best of what is left.
    """
    least = {i: min(floors[i], tensors[i].total) for pool in pools for i in pool.tensors if floors[i]}
    if not least:
        return keep_top_of_all(tensors, pools, exchange)
    safe = keep_top_of_all(tensors, [Ranking([i], count) for i, count in least.items()], exchange)
    others, left = list(tensors), []
    for i, mask in safe.items():
        before, alive = tensors[i].alive, ~mask
        alive = alive if before is None else alive & before
        living, total = int(alive.count_nonzero()), tensors[i].total - least[i]
        others[i] = replace(tensors[i], alive=alive, living=living, total=total)
    for pool in pools:
        left.append(Ranking(pool.tensors, pool.keep - sum(least.get(i, 0) for i in pool.tensors)))
    found = keep_top_of_all(others, left, exchange)
    return {i: mask | safe[i] if i in safe else mask for i, mask in found.items()}
