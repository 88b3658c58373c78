"""Units that several ranks hold parts of: norms of slices, summed over ranks before the units are ranked.

Each rank adds what its part contributes to a vector of one number a unit, so what is exchanged grows with the channels
of a model, not with its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.shard import Part, is_sharded
from ignite_prune._utils.sharded_top import Scored
from ignite_prune.pattern import Channel
from ignite_prune.update.scores import ParameterScores


class ShardedChannels:
    """The slices of one parameter, of which this rank holds parts.

    Args:
        pattern: whose units they are.
        parameter: the whole parameter.
        part: what of it lies on this rank.
        scores: of this part.
        mask: of this part, None where nothing is pruned.

    Raises:
        ValueError: the saliency does not give one score for each entry; the norm does not take its scores, or cannot be
            summed over ranks.
    """

    def __init__(
        self, pattern: Channel, parameter: Tensor, part: Part, scores: ParameterScores, mask: Tensor | None
    ) -> None:
        dims = pattern.grid(part.shape).units
        units = tuple(part.shape[dim] for dim in dims)
        here = Part(units, tuple(part.start[dim] for dim in dims), tuple(part.size[dim] for dim in dims))
        self._here, self._counted, self._norm = here, part.counted, pattern.norm
        self.is_split = is_split_beyond(parameter, dims)
        if self.is_split and pattern.norm == torch.inf:
            raise ValueError(
                f"{pattern} takes the largest entry of slices of {scores.name!r} that several ranks hold parts of; "
                "take a finite norm, or shard a dimension that indexes the units"
            )
        held = scores.compute()
        if tuple(held.shape) != part.size:
            raise ValueError(f"The saliency of sharded parameter {scores.name!r} should give one score for each entry")
        norms = pattern.group(held, mask).cpu()
        self._norms = norms**pattern.norm if self.is_split else norms
        self._alive = None if mask is None else pattern.alive(mask).cpu()

    @property
    def size(self) -> int:
        """The number of units."""
        return int(torch.Size(self._here.shape).numel())

    def contribution(self) -> Tensor:
        """Return what this rank adds to the scores of all units, and to their numbers of living slices."""
        vectors = torch.zeros((2, *self._here.shape), dtype=torch.float64)
        if self._counted:
            self._here.of(vectors[0]).copy_(self._norms.view(self._here.size))
            alive = torch.ones_like(self._norms) if self._alive is None else self._alive
            self._here.of(vectors[1]).copy_(alive.view(self._here.size))
        return vectors.view(2, -1)

    def scored(self, total: Tensor, first: bool) -> Scored:
        """Return the units over all ranks from the sum of all contributions; the first rank counts them."""
        scores, alive = total[0] ** (1 / self._norm) if self.is_split else total[0], total[1] > 0
        whole = Part((self.size,), (0,), (self.size,), first)
        living = int(alive.count_nonzero())
        return Scored(lambda: scores, None if living == self.size else alive, living, whole, living)

    def own(self, units: Tensor) -> Tensor:
        """Return which of this rank's units stay, of all."""
        return self._here.of(units.view(self._here.shape)).reshape(-1)


def is_split_beyond(parameter: Any, dims: Sequence[int]) -> bool:
    """Return whether a parameter is sharded along other dimensions than those that index its units."""
    if not is_sharded(parameter):
        return False
    return any(not each.is_replicate() and each.dim not in dims for each in parameter.placements)


def summed(slices: Sequence[ShardedChannels], exchange: Exchange) -> list[Scored]:
    """Return the units of several parameters over all ranks, by one message."""
    if not slices:
        return []
    total = exchange.sum(torch.cat([each.contribution() for each in slices], 1), "norms of slices")
    parts = torch.split(total, [each.size for each in slices], dim=1)
    return [each.scored(part, exchange.rank == 0) for each, part in zip(slices, parts)]
