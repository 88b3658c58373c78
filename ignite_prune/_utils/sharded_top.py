"""Exact top-k over tensors of which each rank holds a part, as one process would choose that held them all.

Nothing is gathered. Scores are ranked by integer keys, and entries of equal keys by their position in the whole
tensors, the earlier one first, so there is one order over all ranks:

1. Each rank sends a small sample of its scores; the weighted sample brackets the threshold of each pool.
2. One local pass masks what is above the bracket and collects the candidates inside, a few in a hundred.
3. The threshold among them is found by counting: :mod:`~ignite_prune._utils.threshold_search`.

If the counts show that the threshold is a bound of the bracket itself, which many entries equal, those of the one
tensor in which it lies are the candidates. A bracket that misses it is widened, at last to everything, so the result
never depends on the sample. Every number that decides is an integer, so ranks on different machines make the same
decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.score_keys import exact, key_of, keys_of, number_of, zero_bits
from ignite_prune._utils.shard import Part
from ignite_prune._utils.threshold_search import BINS, FEW, ThresholdSearch, counts_of, search_together

_SAMPLE = 1 << 14  # scores that all ranks together send, 8 bytes each
_WIDE = 0.05  # share of the entries inside a bracket from which it is narrowed first
_MANY = 1 << 21  # candidates on a rank from which it is
_PIECE = 1 << 18  # entries whose keys are computed at once


@dataclass
class Scored:
    """This rank's part of one tensor of scores.

    Args:
        scores: returns the scores of the part; called a few times, and equal each time.
        alive: bool, in the scores' shape; None if all are.
        living: number of alive entries of the part.
        part: where it lies, in units.
        total: number of alive entries of the whole tensor.
    """

    scores: Callable[[], Tensor]
    alive: Tensor | None
    living: int
    part: Part
    total: int


class Bounds(NamedTuple):
    """Scores between which a threshold lies, and how many low bits of the scores' keys are 0."""

    low: float
    high: float
    shift: int


@dataclass
class Ranking:
    """Tensors of which the best ``keep`` entries are kept together.

    Args:
        tensors: their indices in the list of all.
        keep: number of entries to keep, over all ranks.
        bounds: what is known of the threshold; None if nothing is.
    """

    tensors: Sequence[int]
    keep: int
    bounds: Bounds | None = None


@dataclass
class _Pool:
    """A ranking whose threshold is searched.

    Args:
        tensors: of the ranking.
        keep: number of entries to keep.
        low, high: bounds of the threshold.
        share: of the entries that the bounds are expected to hold between them.
        shift: how many low bits of all keys are 0.
        masks: of what is above the lower bound, flat, one for each tensor.
        inside: the candidates' flat indices in each part.
        above: how many entries are at the upper bound or above, over all ranks.
        edge: the bound that is the threshold itself, and the tensor in which it lies; None if it is between them.
    """

    tensors: Sequence[Scored]
    keep: int
    low: float = -math.inf
    high: float = math.inf
    share: float = 1.0
    shift: int = 0
    masks: list[Tensor] = field(default_factory=list)
    inside: list[Tensor] = field(default_factory=list)
    above: int = 0
    edge: tuple[float, int] | None = None
    search: ThresholdSearch = field(default_factory=lambda: ThresholdSearch(0, 0, 0, 0, 0))

    @property
    def total(self) -> int:
        return sum(each.total for each in self.tensors)


def keep_top_of_all(tensors: Sequence[Scored], rankings: Sequence[Ranking], exchange: Exchange) -> dict[int, Tensor]:
    """Return the bool mask of this rank's part of each tensor: of each ranking the largest scores over all ranks.

    Every rank calls it with equal rankings. Of equal scores, the earlier tensor and then the lower flat index in the
    whole tensor is kept, as :func:`~ignite_prune._utils.topk.keep_top` does.
    """
    masks, left = dict[int, Tensor](), list[Ranking]()
    for ranking in rankings:
        if 0 < ranking.keep < sum(tensors[i].total for i in ranking.tensors):
            left.append(ranking)
        else:
            masks |= {i: _constant(tensors[i], ranking.keep > 0) for i in ranking.tensors}
    spread = 4.0
    while left:  # those whose bracket missed are tried again
        pools = [_Pool([tensors[i] for i in each.tensors], each.keep) for each in left]
        unknown = [pool for pool, each in zip(pools, left) if not _takes(pool, each.bounds, spread)]
        if spread < math.inf and any(pool.total > FEW for pool in unknown):
            _bracket(unknown, spread, exchange)
            _refine([pool for pool in unknown if _is_wide(pool, exchange.ranks)], exchange)
        for pool in pools:
            _collect(pool)
        missed = _place(pools, exchange)
        search_together([pool.search for index, pool in enumerate(pools) if index not in missed], exchange)
        for index, (ranking, pool) in enumerate(zip(left, pools)):
            if index not in missed:
                masks |= dict(zip(ranking.tensors, _kept(pool)))
        left, spread = [left[index] for index in missed], 40.0 if spread == 4.0 else math.inf
    return masks


def _takes(pool: _Pool, bounds: Bounds | None, spread: float) -> bool:
    """Set a pool's known bounds, unless they were tried before; return whether there are any."""
    if bounds is None or spread != 4.0:
        return False
    pool.low, pool.high, pool.shift = bounds
    return True


def _constant(tensor: Scored, keep: bool) -> Tensor:
    if keep and tensor.alive is not None:
        return tensor.alive.clone()
    full = torch.ones if keep else torch.zeros
    return full(tensor.part.size, dtype=torch.bool, device=tensor.scores().device)


def _bracket(pools: Sequence[_Pool], spread: float, exchange: Exchange) -> None:
    """Set bounds of each pool's threshold from a sample, ``spread`` standard errors to both sides."""
    n = max(8, _SAMPLE // (exchange.ranks * len(pools)))
    own = torch.full((len(pools), 2 + n), math.nan, dtype=torch.float64)  # zero bits, number of entries, sample
    for row, pool in zip(own, pools):
        counted = [each for each in pool.tensors if each.part.counted]
        stride = -(-sum(math.prod(each.part.size) for each in counted) // n) | 1  # odd: dimensions are powers of two
        row[0], row[1], at = 64, sum(each.living for each in counted), 2
        for each in counted:
            at = _fill(row, at, each, stride)
    sampled = exchange.collect(own, "samples of scores")
    for index, pool in enumerate(pools):
        pool.shift = int(sampled[:, index, 0].min()) % 64
        _bound(pool, sampled[:, index, 1:], spread)


def _fill(row: Tensor, at: int, tensor: Scored, stride: int) -> int:
    """Write every so many of a tensor's scores into a row, from ``at`` on; return where they end.

    Nothing is kept of one tensor while the next one's scores are computed: small pieces between large ones would
    fragment the memory.
    """
    scores = tensor.scores()
    row[0] = min(int(row[0]), zero_bits(scores.dtype))
    values = scores.reshape(-1)[::stride]
    if tensor.alive is not None:
        values = values[tensor.alive.reshape(-1)[::stride]]
    end = min(at + len(values), len(row))
    row[at:end] = values[: end - at].cpu()
    return end


def _bound(pool: _Pool, sampled: Tensor, spread: float) -> None:
    """Set a pool's bounds from each rank's number of entries and sample of them."""
    values = [row[1:][~row[1:].isnan()] for row in sampled]
    weights = [torch.full((len(v),), int(row[0]) * 1024 // max(len(v), 1)) for row, v in zip(sampled, values)]
    ordered, order = torch.cat(values).sort()
    weight, taken = torch.cat(weights)[order].cumsum(0), len(ordered)
    if taken < 64:
        return
    p, whole = 1 - pool.keep / pool.total, int(weight[-1])
    margin = (spread * math.sqrt(max(taken * p * (1 - p), 1.0)) + 2) / taken
    first = int(torch.searchsorted(weight, math.floor((p - margin) * whole))) - 1
    last = int(torch.searchsorted(weight, math.ceil((p + margin) * whole))) + 1
    pool.low = float(ordered[first]) if first >= 0 else -math.inf
    pool.high = float(ordered[last]) if last < taken else math.inf
    pool.share = 2 * margin


def _is_wide(pool: _Pool, ranks: int) -> bool:
    """Return whether too many candidates are expected: they take 25 bytes each, and a pass to narrow them time."""
    return pool.total > FEW and (pool.share > _WIDE or pool.share * pool.total > _MANY * ranks)


def _refine(pools: Sequence[_Pool], exchange: Exchange) -> None:
    """Narrow wide bounds by one pass that only counts, so that few candidates are to be stored.

    Bounds are wide where samples are small, because the pools are many.
    """
    if not pools:
        return
    bins = max(2, BINS // len(pools))
    counts = torch.zeros((len(pools), bins + 1), dtype=torch.int64)
    ends = [(key_of(pool.low, pool.shift), key_of(pool.high, pool.shift)) for pool in pools]
    for row, pool, (first, last) in zip(counts, pools, ends):
        for tensor in (each for each in pool.tensors if each.part.counted):
            scores = tensor.scores().reshape(-1)
            flat = scores if tensor.alive is None else scores[tensor.alive.reshape(-1)]
            for piece in torch.split(flat, _PIECE):
                keys = keys_of(piece[exact(piece, pool.low) >= pool.low], pool.shift)
                inside = keys[keys <= last]
                row[:bins] += counts_of(inside, first, last, bins).cpu()
                row[bins] += len(keys) - len(inside)
    for row, pool, (first, last) in zip(exchange.sum(counts), pools, ends):
        search = ThresholdSearch(pool.keep - int(row[bins]), int(row[:bins].sum()), first, last, 0)
        if 0 < search.need <= search.count:
            search.narrow(row[:bins])
            pool.low = max(pool.low, _just(search.first - 1, pool.shift))
            pool.high = min(pool.high, _just(search.last + 1, pool.shift))


def _just(key: int, shift: int) -> float:
    """Return the number of a key next to an interval."""
    lowest, highest = key_of(-math.inf, shift), key_of(math.inf, shift)
    return number_of(min(max(key, lowest), highest), shift)


def _collect(pool: _Pool) -> None:
    """Set the masks of what is above the lower bound, and the candidates between the bounds, in one pass."""
    sizes = [math.prod(tensor.part.size) for tensor in pool.tensors]
    pool.masks = [torch.empty(size, dtype=torch.bool) for size in sizes]  # before large temporaries, as they stay
    keys, places, counted, base = list[Tensor](), list[Tensor](), list[Tensor](), 0
    for index, tensor in enumerate(pool.tensors):
        inside, found = _candidates(pool, index)
        pool.inside.append(inside)
        keys.append(found)
        places.append(-(tensor.part.positions(inside) + base).cpu())
        counted.append(torch.full((len(inside),), tensor.part.counted))
        base += math.prod(tensor.part.shape)
    first, last = key_of(pool.low, pool.shift), key_of(pool.high, pool.shift)
    pool.search = ThresholdSearch(0, 0, first, last, base, torch.cat(keys), torch.cat(places), torch.cat(counted))


def _candidates(pool: _Pool, index: int) -> tuple[Tensor, Tensor]:
    """Set one mask of a pool; return the indices of the candidates in it, and their keys."""
    tensor = pool.tensors[index]
    flat = exact(exact(tensor.scores().reshape(-1), pool.low), pool.high)
    if pool.masks[index].device != flat.device:
        pool.masks[index] = torch.empty_like(flat, dtype=torch.bool)
    mask = torch.gt(flat, pool.low, out=pool.masks[index])
    if tensor.alive is not None:
        mask &= tensor.alive.reshape(-1)
    inside = (flat < pool.high).logical_and_(mask).nonzero().squeeze(1)
    return inside, keys_of(flat[inside], pool.shift).cpu()


def _place(pools: Sequence[_Pool], exchange: Exchange) -> list[int]:
    """Set how many candidates each search keeps; return the indices of those whose bounds missed the threshold."""
    own = [
        (sum(int(m.count_nonzero()) for m, t in zip(pool.masks, pool.tensors) if t.part.counted), pool.search.counted)
        for pool in pools
    ]
    numbers = torch.tensor([(above, int(counted.sum())) for above, counted in own], dtype=torch.int64)
    edges = []
    for index, (pool, (above, inside)) in enumerate(zip(pools, exchange.sum(numbers).tolist())):
        pool.above = above - inside
        pool.search.need, pool.search.count = pool.keep - pool.above, inside
        if not 0 <= pool.search.need <= inside:
            edges.append(index)
    return _at_edges(pools, edges, exchange) if edges else []


def _at_edges(pools: Sequence[_Pool], edges: Sequence[int], exchange: Exchange) -> list[int]:
    """Search among the entries that equal a bound where that is the threshold; return the indices of the others."""
    values = {index: pools[index].high if pools[index].search.need < 0 else pools[index].low for index in edges}
    own = [
        int(_equal(tensor, values[index]).count_nonzero()) if tensor.part.counted else 0
        for index in edges
        for tensor in pools[index].tensors
    ]
    counts, missed = exchange.sum(torch.tensor(own, dtype=torch.int64)).tolist(), []
    for index in edges:
        pool, value = pools[index], values[index]
        ties, counts = counts[: len(pool.tensors)], counts[len(pool.tensors) :]
        is_high = pool.search.need < 0
        larger = pool.above - (sum(ties) if is_high and pool.high > pool.low else 0)
        larger += 0 if is_high else pool.search.count
        need = pool.keep - larger
        if not math.isfinite(value) or not 0 <= need <= sum(ties):
            missed.append(index)
        else:
            _search_ties(pool, value, need, ties)
    return missed


def _equal(tensor: Scored, value: float) -> Tensor:
    ties = exact(tensor.scores().reshape(-1), value) == value
    return ties if tensor.alive is None else ties.logical_and_(tensor.alive.reshape(-1))


def _search_ties(pool: _Pool, value: float, need: int, ties: Sequence[int]) -> None:
    """Keep the first ``need`` entries that equal a bound: all of the first tensors, and search in one of them."""
    at = 0
    while at < len(ties) - 1 and need > ties[at]:
        need, at = need - ties[at], at + 1
    tensor, key = pool.tensors[at], key_of(value, pool.shift)
    inside = _equal(tensor, value).nonzero().squeeze(1)
    places = -tensor.part.positions(inside).cpu()
    entries = math.prod(tensor.part.shape)
    counted = torch.full((len(inside),), tensor.part.counted)
    keys = torch.full((len(inside),), key)
    pool.search = ThresholdSearch(need, ties[at], -entries, 0, entries, keys, places, counted, tied=key)
    pool.edge, pool.inside = (value, at), [inside]


def _kept(pool: _Pool) -> list[Tensor]:
    """Return the masks of a pool's tensors, without the candidates that are below the threshold."""
    gone = pool.search.dropped()
    if pool.edge is None:
        for mask, inside, drop in zip(pool.masks, pool.inside, torch.split(gone, [len(each) for each in pool.inside])):
            mask[inside[drop.to(inside.device)]] = False
    else:
        value, at = pool.edge
        for index, (tensor, mask) in enumerate(zip(pool.tensors, pool.masks)):
            ties = _equal(tensor, value)
            torch.logical_or(mask, ties, out=mask) if index <= at else mask.logical_and_(ties.logical_not_())
        if value == pool.high:  # nothing between the bounds is kept
            for tensor, mask in zip(pool.tensors, pool.masks):
                mask.logical_and_(exact(tensor.scores().reshape(-1), value) >= value)
        (inside,) = pool.inside
        pool.masks[at][inside[gone.to(inside.device)]] = False
    return [mask.view(tensor.part.size) for mask, tensor in zip(pool.masks, pool.tensors)]
