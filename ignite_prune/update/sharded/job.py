"""One parameter in an update over shards: its scores on this rank, its units over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.sharded_top import Scored
from ignite_prune.allocation import Layer
from ignite_prune.core.sharded_mask_store import ShardedMaskStore
from ignite_prune.pattern import Channel
from ignite_prune.update.plan import GroupUpdate, Masks
from ignite_prune.update.scores import ParameterScores
from ignite_prune.update.sharded.sharded_channels import ShardedChannels, summed
from ignite_prune.update.sharded.unit_parts import unit_part


@dataclass
class Job:
    """One parameter in an update: its scores on this rank, and the record that an allocation gets.

    Args:
        update: its group's.
        parameter: the whole parameter, sharded or not.
        scores: of this rank's part.
        tensor: its units here and over all ranks.
        layer: its units over all ranks.
        slices: of a pattern whose units several ranks may hold parts of.
        rows: the dimension that indexes rows, of a saliency whose scores are only compared within a row.
    """

    update: GroupUpdate
    parameter: Tensor
    scores: ParameterScores
    tensor: Scored
    layer: Layer
    slices: ShardedChannels | None = None
    rows: int | None = None

    def masked(self, units: Tensor) -> Tensor:
        """Return the new mask of this rank's part, from the kept units among those that lie on several ranks."""
        own = units if self.slices is None else self.slices.own(units)
        return self.scores.spread(own.to(self.scores.device))


def jobs_of(update: GroupUpdate, store: ShardedMaskStore, before: Masks) -> list[Job]:
    """Return the jobs of a group; units are not counted over ranks yet.

    Raises:
        ValueError: a unit of the pattern is split between ranks.
    """
    pattern, jobs = update.group["pattern"], []
    for name, scores in update.scores.items():
        part, mask, parameter = store.parts[name], before[name], store.parameters[name]
        if isinstance(pattern, Channel):
            slices = ShardedChannels(pattern, parameter, part, scores, mask)
            tensor = Scored(scores.compute, None, 0, part, 0)
            layer = Layer(name, part.shape, slices.size, scores.compute, None, 0)
            jobs.append(Job(update, parameter, scores, tensor, layer, slices))
            continue
        units, here = unit_part(name, pattern, part), scores.layer()
        count = pattern.count(part.shape)
        total = count if mask is None else store.kept(name) if pattern.streams else -1
        tensor = Scored(here.scores, here.alive, here.living, units, total)
        layer = Layer(name, part.shape, count, here.scores, here.alive, 0)
        jobs.append(Job(update, parameter, scores, tensor, layer, rows=scores.rows if pattern.streams else None))
    return jobs


def count_units(jobs: Sequence[Job], exchange: Exchange) -> None:
    """Set how many units of each parameter are alive over all ranks; of single entries the store has counted them."""
    split = [job for job in jobs if job.slices is not None]
    for job, tensor in zip(split, summed([job.slices for job in split if job.slices is not None], exchange)):
        job.tensor = tensor
        job.layer = replace(job.layer, scores=tensor.scores, alive=tensor.alive)
    unknown = [job for job in jobs if job.tensor.total < 0]
    if unknown:
        own = [job.tensor.living if job.tensor.part.counted else 0 for job in unknown]
        for job, total in zip(unknown, exchange.sum(torch.tensor(own, dtype=torch.int64)).tolist()):
            job.tensor.total = total
    for job in jobs:
        job.layer = replace(job.layer, living=job.tensor.total)
