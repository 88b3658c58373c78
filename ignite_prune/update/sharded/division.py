"""What allocations that depend on the scores need to know of them, computed over ranks.

Each function here does what the allocation's ``divide`` does with whole scores. Sums over ranks are of float64, so they
equal those of one process up to rounding; counts are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.score_sums import Ranks, ScoreSums, narrowed
from ignite_prune._utils.sharded_top import Bounds, Scored
from ignite_prune._utils.sparsity import kept
from ignite_prune._utils.sum_together import OverRanks, sum_together
from ignite_prune.allocation import LAMP, OWL, Allocation, Bucket, Layer, Pool, StdThreshold

_SLACK = 1e-9  # relative, of sums that are rounded


@dataclass
class ShardDivision:
    """One group's units, to be divided.

    Args:
        allocation: the group's.
        layers: its parameters.
        tensors: this rank's parts of their scores; an allocation may change what they are ranked by.
        fraction: of the units, to be pruned.
    """

    allocation: Allocation
    layers: Sequence[Layer]
    tensors: Sequence[Scored]
    fraction: float


def check_scores(allocation: Allocation, tensor: Scored) -> None:
    """Raise if this rank has scores that an allocation is not defined for.

    Raises:
        ValueError: some are negative.
    """
    if isinstance(allocation, LAMP | OWL | Bucket):
        scores = tensor.scores()
        living = scores if tensor.alive is None else scores[tensor.alive]
        if living.numel() and float(living.amin()) < 0:
            raise ValueError(f"{allocation} needs scores of at least 0, but the least is {float(living.amin()):g}")


Pools = list[tuple[Pool, Bounds | None]]
"""Each pool, with bounds of its threshold where these are known."""


def divided(divisions: Sequence[ShardDivision], exchange: Exchange) -> Pools:
    """Return the pools of all groups, by the same messages; every rank calls it."""
    groups = sum_together([_pools(each, exchange) for each in divisions], exchange)
    return [each for group in groups for each in group]


def _pools(division: ShardDivision, exchange: Ranks) -> OverRanks[Pools]:
    allocation = division.allocation
    if isinstance(allocation, OWL):
        return (yield from _by_outliers(allocation, division))
    if isinstance(allocation, StdThreshold):
        return (yield from _by_deviation(allocation, division))
    if isinstance(allocation, LAMP):
        return (yield from _by_lamp(division, exchange))
    if isinstance(allocation, Bucket):
        return (yield from _by_budget(allocation, division, exchange))
    return [(pool, None) for pool in allocation.divide(division.layers, division.fraction)]


def _living(tensor: Scored) -> Tensor:
    """Return the living scores that this rank counts, flat."""
    scores = tensor.scores()
    living = (scores if tensor.alive is None else scores[tensor.alive]).flatten()
    return living if tensor.part.counted else living[:0]


def _by_outliers(allocation: OWL, division: ShardDivision) -> OverRanks[Pools]:
    own = torch.tensor([float(_living(each).double().sum()) for each in division.tensors], dtype=torch.float64)
    sums, outliers = (yield own).tolist(), []
    for tensor, total in zip(division.tensors, sums):
        living = _living(tensor)
        living = living.float() if living.itemsize < 4 else living
        mean = torch.tensor(total / max(tensor.total, 1), dtype=living.dtype, device=living.device)
        outliers.append(float((living > mean * allocation.threshold).count_nonzero()))
    counts = (yield torch.tensor(outliers, dtype=torch.float64)).tolist()
    layers = division.layers
    ratios = [count / layer.living if layer.living else 0.0 for count, layer in zip(counts, layers)]
    keep = allocation.counts(
        ratios, [each.units for each in layers], [each.living for each in layers], division.fraction
    )
    return [(Pool((layer,), count), None) for layer, count in zip(layers, keep)]


def _by_deviation(allocation: StdThreshold, division: ShardDivision) -> OverRanks[Pools]:
    own = [float(_living(each).double().square().sum()) for each in division.tensors]
    squares = (yield torch.tensor(own, dtype=torch.float64)).tolist()
    for tensor, total in zip(division.tensors, squares):
        _divide(tensor, max(math.sqrt(total / max(tensor.total, 1)), 1e-300))
    layers, keep = tuple(division.layers), kept(sum(layer.units for layer in division.layers), division.fraction)
    if allocation.q is not None:
        above = [float((_living(each) >= allocation.q).count_nonzero()) for each in division.tensors]
        keep = max(keep, int((yield torch.tensor(above, dtype=torch.float64)).sum()))
    return [(Pool(layers, keep), None)]


def _divide(tensor: Scored, deviation: float) -> None:
    scores = tensor.scores
    tensor.scores = lambda: scores().double() / deviation


def _by_budget(allocation: Bucket, division: ShardDivision, exchange: Ranks) -> OverRanks[Pools]:
    row = ScoreSums(division.tensors, power=1)

    def limit() -> float:
        return allocation.budget * (row.above[1] + row.inside[1] + row.below[1] if allocation.relative else 1.0)

    def reached(rows: Sequence[ScoreSums]) -> list[tuple[int, int]]:
        lost, most = row.below[1] + row.table[1].cumsum(0), limit()
        low = int((lost <= most * (1 - _SLACK)).count_nonzero())
        high = int((lost <= most * (1 + _SLACK)).count_nonzero()) + 1
        return [(min(low, len(lost) - 1), min(high, len(lost)))]

    (left,) = yield from narrowed([row], reached, exchange)
    lost = row.below[1] + left.flip(0).cumsum(0)
    pruned = row.below[0] + int((lost <= limit()).count_nonzero())
    layers, total = tuple(division.layers), sum(layer.units for layer in division.layers)
    living = sum(layer.living for layer in layers)
    least = kept(total, division.fraction)
    return [(Pool(layers, max(least, living - pruned)), row.around() if living - pruned >= least else None)]


def _by_lamp(division: ShardDivision, exchange: Ranks) -> OverRanks[Pools]:
    """Return how many units of each layer are among the best: within a layer the order is that of the scores."""
    layers, rows = division.layers, [ScoreSums([each], power=2) for each in division.tensors]
    keep = kept(sum(layer.units for layer in layers), division.fraction)
    if not 0 < keep < sum(layer.living for layer in layers):
        return [(Pool(tuple(layers), keep), None)]
    left = yield from narrowed(rows, lambda rows: _around(rows, keep), exchange)
    tiny = torch.finfo(torch.float64).tiny
    squares = [scores.square() for scores in left]
    shares = [own / (own.cumsum(0) + row.above[1]).clamp(min=tiny) for own, row in zip(squares, rows)]
    order = torch.cat(shares).sort(descending=True, stable=True).indices[: keep - sum(row.above[0] for row in rows)]
    owner = torch.cat([torch.full((len(own),), index) for index, own in enumerate(shares)])
    more = torch.bincount(owner[order], minlength=len(rows)).tolist()
    keeps = [row.above[0] + extra for row, extra in zip(rows, more)]
    return [(Pool((layer,), keep), row.around()) for layer, row, keep in zip(layers, rows, keeps)]


def _around(rows: Sequence[ScoreSums], keep: int) -> list[tuple[int, int]]:
    """Return the bins of each row in which the entry number ``keep`` of all may be.

    The entries above an edge x of a row have LAMP scores of at least x² / S and those below it less, where S is the sum
    of the squares above the edge. So edges of all rows can be ordered, and entries between two of them counted.
    """
    above = [torch.cat([row.table.flip(1).cumsum(1).flip(1), torch.zeros(2, 1)], 1) for row in rows]
    edges, counts = [], []
    for row, table in zip(rows, above):
        squares = row.edges.square()
        sums = row.above[1] + table[1]
        found = torch.where(sums > 0, squares / sums.clamp(min=1e-300), torch.where(squares > 0, math.inf, 0.0))
        found[1:].clamp_(min=5e-324)  # a square that underflows is not that of 0, which is below the edge
        edges.append(found.cummax(0).values)
        counts.append(row.above[0] + table[0])
    every, pairs = torch.unique(torch.cat(edges)), list(zip(edges, counts))
    least = torch.stack([_padded(count)[torch.searchsorted(edge, every)] for edge, count in pairs]).sum(0)
    below = [(torch.searchsorted(edge, every, right=True) - 1).clamp(min=0) for edge in edges]
    most = torch.stack([count[at] for count, at in zip(counts, below)]).sum(0)
    low = every[least >= keep].max() * (1 - _SLACK) if bool((least >= keep).any()) else every[0]
    high = every[most < keep].min() * (1 + _SLACK) if bool((most < keep).any()) else torch.tensor(math.inf)
    bins = [len(edge) - 1 for edge in edges]
    first = [max(int(torch.searchsorted(edge, low.double(), right=True)) - 1, 0) for edge in edges]
    last = [min(int(torch.searchsorted(edge, high.double())), size) for edge, size in zip(edges, bins)]
    return [(min(a, size), max(min(a, size), b)) for a, b, size in zip(first, last, bins)]


def _padded(counts: Tensor) -> Tensor:
    """Return counts with a zero for what is above the last edge."""
    return torch.cat([counts, counts[-1:]])
