"""Which units stay, of parameters whose parts lie on several ranks: the pools of all groups in the same messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.sharded_top import Ranking, Scored, keep_top_of_all
from ignite_prune._utils.sparsity import as_unit_fraction
from ignite_prune.update.sharded.division import Division, divided
from ignite_prune.update.sharded.job import Job


def chosen(jobs: Sequence[Job], exchange: Exchange) -> list[tuple[Job, Tensor]]:
    """Return the units that stay on this rank, of each parameter that gets sparser."""
    pools, floors = list[Ranking](), [0] * len(jobs)
    places = {id(job.layer): index for index, job in enumerate(jobs)}
    for pool in (pool for group in divided(_divisions(jobs), exchange) for pool in group):
        least = pool.floors or (0,) * len(pool.layers)
        keep = max(pool.keep, sum(min(floor, layer.living) for floor, layer in zip(least, pool.layers)))
        if keep < sum(layer.living for layer in pool.layers):
            pools.append(Ranking([places[id(layer)] for layer in pool.layers], keep))
            for floor, layer in zip(least, pool.layers):
                floors[places[id(layer)]] = floor
    found = keep_top_with_floors([job.tensor for job in jobs], pools, floors, exchange)
    return [(jobs[index], found[index]) for index in sorted(found)]


def _divisions(jobs: Sequence[Job]) -> list[Division]:
    divisions = []
    for update in {id(job.update): job.update for job in jobs}.values():
        mine = [job for job in jobs if job.update is update]
        assert update.target is not None
        fraction = as_unit_fraction(update.group["pattern"], update.target)
        layers, tensors = [job.layer for job in mine], [job.tensor for job in mine]
        divisions.append(Division(update.group["allocation"], layers, tensors, fraction))
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
        alive = ~mask if tensors[i].alive is None else tensors[i].alive & ~mask
        others[i] = replace(
            tensors[i], alive=alive, living=int(alive.count_nonzero()), total=tensors[i].total - least[i]
        )
    for pool in pools:
        left.append(Ranking(pool.tensors, pool.keep - sum(least.get(i, 0) for i in pool.tensors)))
    found = keep_top_of_all(others, left, exchange)
    return {i: mask | safe[i] if i in safe else mask for i, mask in found.items()}
