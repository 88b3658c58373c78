"""Exact top-k over tensors of which each rank holds a part, as one process would choose that held them all.

Nothing is gathered. Scores are ranked by an integer key, and entries of equal keys by their position in the whole
tensors, the earlier one first, so there is one order over all ranks and no tie:

1. Each rank sends a small sample of its scores; the weighted sample brackets the threshold of each pool.
2. One local pass collects the candidates inside the bracket, a few in a hundred.
3. The interval of keys is cut into bins, each rank counts its candidates in them, and the counts are summed: the
   threshold lies in one bin, which is the next interval. Where an interval is a single key, the positions of its
   entries take the keys' place.
4. When few candidates are left over all ranks, these are exchanged, and the threshold is one of them.

A bracket that misses the threshold is widened, at last to everything, so the result never depends on the sample. Every
number that decides is an integer, so that ranks on different machines come to the same decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.shard import Part

_SAMPLE = 1 << 14  # scores that all ranks together send, 8 bytes each
_BINS = 1 << 13  # counts in a message, 8 bytes each
_FEW = 1 << 12  # candidates that are exchanged, 24 bytes each
_WIDE = 0.05  # share of the entries inside a bracket from which it is narrowed first
_PIECE = 1 << 20  # entries whose keys are computed at once
_HIGHEST = 1 << 62


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


@dataclass
class Ranking:
    """Tensors of which the best ``keep`` entries are kept together.

    Args:
        tensors: their indices in the list of all.
        keep: number of entries to keep, over all ranks.
    """

    tensors: Sequence[int]
    keep: int


@dataclass(eq=False)
class _Search:
    """The state of one pool's threshold: its candidates here, and the interval of the keys where it lies."""

    keep: int
    low: float = -math.inf
    high: float = math.inf
    share: float = 1.0  # of the entries that the bracket is expected to hold
    shift: int = 0  # how many low bits of the keys are 0
    keys: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    places: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # minus the positions
    counted: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    first: int = 0  # bounds of the interval, inclusive
    last: int = 0
    need: int = 0  # how many of the interval's candidates are kept
    count: int = 0  # how many there are, over all ranks
    entries: int = 0  # of all tensors, as wholes
    tied: int | None = None  # the key of all candidates in the interval, whose places are searched
    threshold: tuple[int, int] | None = None  # key and place from which candidates are kept

    def within(self) -> Tensor:
        """Return which candidates of this rank are in the interval and counted here."""
        values = self.keys if self.tied is None else self.places
        inside = (values >= self.first) & (values <= self.last) & self.counted
        return inside if self.tied is None else inside & (self.keys == self.tied)


def keep_top_of_all(tensors: Sequence[Scored], pools: Sequence[Ranking], exchange: Exchange) -> dict[int, Tensor]:
    """Return the bool mask of this rank's part of each tensor: of each pool those of largest score over all ranks.

    Every rank calls it with equal pools. Of equal scores, the earlier tensor and then the lower flat index in the whole
    tensor is kept, as :func:`~ignite_prune._utils.topk.keep_top` does.
    """
    masks: dict[int, Tensor] = {}
    open_pools = []
    for pool in pools:
        total = sum(tensors[i].total for i in pool.tensors)
        if pool.keep >= total or pool.keep <= 0:
            for i in pool.tensors:
                masks[i] = _constant(tensors[i], pool.keep > 0)
        else:
            open_pools.append(pool)
    spread = 4.0
    while open_pools:  # pools whose bracket missed are tried again
        large = any(sum(tensors[i].total for i in pool.tensors) > _FEW for pool in open_pools)
        sampled = _sampled(tensors, open_pools, exchange) if large and spread < math.inf else None
        searches = [_bracketed(tensors, pool, sampled, index, spread) for index, pool in enumerate(open_pools)]
        _refine(tensors, open_pools, searches, exchange)
        found = [_collect(tensors, pool, search) for pool, search in zip(open_pools, searches)]
        missed = _place(tensors, open_pools, searches, found, exchange)
        _search([search for search in searches if search not in missed], exchange)
        again = []
        for pool, search, parts in zip(open_pools, searches, found):
            if search in missed:
                again.append(pool)
                continue
            masks |= dict(zip(pool.tensors, _kept(search, parts)))
        open_pools, spread = again, 40.0 if spread == 4.0 else math.inf
    return masks


def _constant(tensor: Scored, keep: bool) -> Tensor:
    if keep and tensor.alive is not None:
        return tensor.alive.clone()
    full = torch.ones if keep else torch.zeros
    return full(tensor.part.size, dtype=torch.bool, device=tensor.scores().device)


def _sampled(tensors: Sequence[Scored], pools: Sequence[Ranking], exchange: Exchange) -> Tensor:
    """Return ``(ranks, pools, 2 + n)``: of each rank how many bits are 0, its number of entries, and their sample."""
    n = max(8, _SAMPLE // (exchange.ranks * len(pools)))
    rows = torch.full((len(pools), 2 + n), math.nan, dtype=torch.float64)
    for row, pool in zip(rows, pools):
        counted = [tensors[i] for i in pool.tensors if tensors[i].part.counted]
        entries = sum(math.prod(each.part.size) for each in counted)
        stride = -(-entries // n) | 1  # odd: dimensions are often powers of two
        taken = [_every(each, stride) for each in counted]
        sample = torch.cat([torch.empty(0, dtype=torch.float64), *taken])[:n]
        row[0] = min((_zero_bits(tensors[i].scores().dtype) for i in pool.tensors), default=0)
        row[1] = sum(each.living for each in counted)
        row[2 : 2 + len(sample)] = sample
    return exchange.collect(rows, "samples of scores")


def _every(tensor: Scored, stride: int) -> Tensor:
    values = tensor.scores().reshape(-1)[::stride]
    alive = None if tensor.alive is None else tensor.alive.reshape(-1)[::stride]
    return (values if alive is None else values[alive]).double().cpu()


def _zero_bits(dtype: torch.dtype) -> int:
    """Return how many low bits of a float64 are 0 for every number of a type."""
    return {torch.float32: 29, torch.bfloat16: 45, torch.float16: 42}.get(dtype, 0)


def _bracketed(tensors: Sequence[Scored], pool: Ranking, sampled: Tensor | None, index: int, spread: float) -> _Search:
    """Return a search with bounds of a pool's threshold, ``spread`` standard errors to both sides."""
    search = _Search(pool.keep)
    if sampled is None:
        return search
    search.shift = int(sampled[:, index, 0].min())
    values, weights, taken = [], [], 0
    for row in sampled[:, index]:
        sample = row[2:][~row[2:].isnan()]
        values.append(sample)
        weights.append(torch.full((len(sample),), int(row[1]) * 1024 // max(len(sample), 1), dtype=torch.int64))
        taken += len(sample)
    ordered, order = torch.cat(values).sort()
    weight = torch.cat(weights)[order].cumsum(0)
    total = sum(tensors[i].total for i in pool.tensors)
    if taken < 64 or total <= _FEW:
        return search
    p = 1 - pool.keep / total
    margin = (spread * math.sqrt(max(taken * p * (1 - p), 1.0)) + 2) / taken
    search.share = 2 * margin
    whole = int(weight[-1])
    first = int(torch.searchsorted(weight, math.floor((p - margin) * whole))) - 1
    last = int(torch.searchsorted(weight, math.ceil((p + margin) * whole))) + 1
    search.low = float(ordered[first]) if first >= 0 else -math.inf
    search.high = float(ordered[last]) if last < taken else math.inf
    return search


def _refine(
    tensors: Sequence[Scored], pools: Sequence[Ranking], searches: Sequence[_Search], exchange: Exchange
) -> None:
    """Narrow wide brackets by one pass that only counts, so that few candidates are to be stored.

    A bracket is wide where samples are small, because the pools are many.
    """
    wide = [
        (pool, search)
        for pool, search in zip(pools, searches)
        if search.share > _WIDE and sum(tensors[i].total for i in pool.tensors) > _FEW
    ]
    if not wide:
        return
    bins = max(2, _BINS // len(wide))
    counts = torch.zeros((len(wide), bins + 1), dtype=torch.int64)
    for row, (pool, search) in zip(counts, wide):
        search.first, search.last = _key(search.low, search.shift), _key(search.high, search.shift)
        for tensor in (tensors[i] for i in pool.tensors if tensors[i].part.counted):
            scores = tensor.scores().reshape(-1)
            flat = scores if tensor.alive is None else scores[tensor.alive.reshape(-1)]
            for piece in torch.split(flat, _PIECE):
                keys = _keys(piece, search.shift)
                keys = keys[keys >= search.first]
                inside = keys[keys <= search.last]
                row[:bins] += _counts(inside, search.first, search.last, bins).cpu()
                row[bins] += len(keys) - len(inside)
    for row, (_, search) in zip(exchange.sum(counts), wide):
        search.need = search.keep - int(row[bins])
        if 0 < search.need <= int(row[:bins].sum()):
            _narrow(search, row[:bins], bins)
            search.low, search.high = _bound(search.first, search.shift), _bound(search.last, search.shift)


def _bound(key: int, shift: int) -> float:
    """Return the number of a key: the inverse of :func:`_key`."""
    bits = torch.tensor([key << shift], dtype=torch.int64)
    value = torch.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits).view(torch.float64)
    return float(value)


def _collect(tensors: Sequence[Scored], pool: Ranking, search: _Search) -> list[tuple[Tensor, Tensor, int]]:
    """Return the mask of each tensor's entries from the lower bound on, the candidates' places, and how many are above.

    The candidates' keys and positions over all tensors are put into the search.
    """
    parts, keys, places, counted = [], list[Tensor](), list[Tensor](), list[Tensor]()
    base = 0
    for i in pool.tensors:
        tensor = tensors[i]
        scores = tensor.scores()
        flat = _exact(_exact(scores.reshape(-1), search.low), search.high)
        mask = flat >= search.low
        if tensor.alive is not None:
            mask &= tensor.alive.reshape(-1)
        inside = (flat <= search.high).logical_and_(mask).nonzero().squeeze(1)
        above = int(mask.count_nonzero()) - len(inside)
        parts.append((mask.view(scores.shape), inside, above if tensor.part.counted else 0))
        keys.append(_keys(flat[inside], search.shift).cpu())
        places.append(-(tensor.part.positions(inside) + base).cpu())
        counted.append(torch.full((len(inside),), tensor.part.counted))
        base += math.prod(tensor.part.shape)
    search.entries = base
    search.keys, search.places, search.counted = map(torch.cat, (keys, places, counted))
    return parts


def _exact(values: Tensor, bound: float) -> Tensor:
    """Return ``values`` in a dtype that represents ``bound``."""
    held = torch.tensor(bound, dtype=values.dtype).item() == bound
    return values if held else values.double()


def _keys(values: Tensor, shift: int) -> Tensor:
    """Return int64 keys in the order of the values; −0.0 has the key of 0.0."""
    bits = (values.double() + 0.0).view(torch.int64)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits) >> shift


def _key(bound: float, shift: int) -> int:
    return int(_keys(torch.tensor([bound], dtype=torch.float64), shift))


def _place(
    tensors: Sequence[Scored],
    pools: Sequence[Ranking],
    searches: Sequence[_Search],
    found: Sequence[list[tuple[Tensor, Tensor, int]]],
    exchange: Exchange,
) -> list[_Search]:
    """Set how many candidates each search keeps; return those whose bracket missed the threshold."""
    numbers = [[sum(above for _, _, above in parts), int(s.counted.sum())] for parts, s in zip(found, searches)]
    totals = exchange.sum(torch.tensor(numbers, dtype=torch.int64)).tolist()
    missed = []
    for search, (above, inside) in zip(searches, totals):
        search.need, search.count = search.keep - above, inside
        if not 0 <= search.need <= inside:
            missed.append(search)
        search.first, search.last = _key(search.low, search.shift), _key(search.high, search.shift)
    return missed


def _search(searches: Sequence[_Search], exchange: Exchange) -> None:
    """Find the threshold of each search, all of them in the same messages."""
    while True:
        for search in searches:
            _settle(search)
        left = [search for search in searches if search.threshold is None]
        if not left:
            return
        if sum(search.count for search in left) <= _FEW:
            return _exchanged(left, exchange)
        bins = max(2, _BINS // len(left))
        counts = exchange.sum(torch.stack([_histogram(search, bins) for search in left]))
        for search, row in zip(left, counts):
            _narrow(search, row, bins)


def _settle(search: _Search) -> None:
    """End a search whose interval is kept or dropped as a whole; go on to positions where it is a single key."""
    if search.threshold is not None:
        return
    if search.need in (0, search.count):
        edge = search.first if search.need else search.last + 1
        search.threshold = (edge, -_HIGHEST) if search.tied is None else (search.tied, edge)
    elif search.first == search.last and search.tied is None:
        search.tied, search.first, search.last = search.first, -search.entries, 0


def _histogram(search: _Search, bins: int) -> Tensor:
    values = (search.keys if search.tied is None else search.places)[search.within()]
    return _counts(values, search.first, search.last, bins)


def _counts(values: Tensor, first: int, last: int, bins: int) -> Tensor:
    """Return how many values of [first, last] are in each bin."""
    bits = _bits(first, last, bins)
    return torch.bincount((values >> bits) - (first >> bits), minlength=bins)


def _bits(first: int, last: int, bins: int) -> int:
    """Return the width of bins as a power of two; a difference of two keys may be too large for an int64."""
    return next(bits for bits in range(65) if (last >> bits) - (first >> bits) < bins)


def _narrow(search: _Search, counts: Tensor, bins: int) -> None:
    """Take the bin in which the threshold lies as the next interval."""
    from_top = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_top, search.need))
    chosen, bits = len(counts) - 1 - index, _bits(search.first, search.last, bins)
    search.need -= int(from_top[index - 1]) if index else 0
    search.count = int(counts[chosen])
    edge = ((search.first >> bits) + chosen) << bits
    search.first, search.last = max(search.first, edge), min(edge + (1 << bits) - 1, search.last)


def _exchanged(searches: Sequence[_Search], exchange: Exchange) -> None:
    """Exchange the few candidates that are left, and find the thresholds among them."""
    mine = [
        torch.stack([torch.full_like(s.keys[at], index), s.keys[at], s.places[at]], 1)
        for index, s in enumerate(searches)
        for at in (s.within(),)
    ]
    rows = _together(torch.cat(mine), sum(search.count for search in searches), exchange).tolist()
    for index, search in enumerate(searches):
        ordered = sorted(((key, place) for pool, key, place in rows if pool == index), reverse=True)
        search.threshold = ordered[search.need - 1]


def _together(own: Tensor, total: int, exchange: Exchange) -> Tensor:
    """Return the rows of all ranks, ``total`` of them: by one message where padding them is cheap, else by two."""
    if total * exchange.ranks <= 2 * _FEW:
        padded = torch.full((total, own.shape[1]), -1, dtype=torch.int64)
        padded[: len(own)] = own
        return exchange.collect(padded, "candidates").flatten(0, 1)
    sizes = exchange.collect(torch.tensor(len(own), dtype=torch.int64)).tolist()
    every, start = torch.zeros((total, own.shape[1]), dtype=torch.int64), sum(sizes[: exchange.rank])
    every[start : start + len(own)] = own
    return exchange.sum(every, "candidates")


def _kept(search: _Search, parts: Sequence[tuple[Tensor, Tensor, int]]) -> list[Tensor]:
    """Return the masks of a pool's tensors, without the candidates that are below the threshold."""
    assert search.threshold is not None
    key, place = search.threshold
    gone = (search.keys < key) | ((search.keys == key) & (search.places < place))
    for (mask, inside, _), drop in zip(parts, torch.split(gone, [len(inside) for _, inside, _ in parts])):
        mask.view(-1)[inside[drop.to(inside.device)]] = False
    return [mask for mask, _, _ in parts]
