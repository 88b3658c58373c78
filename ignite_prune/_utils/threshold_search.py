"""The threshold among candidates that lie on several ranks: intervals of integer keys are narrowed by counting.

An interval is cut into bins, each rank counts its candidates in them, and the counts are summed: the threshold lies in
one bin, which is the next interval. Where an interval is a single key, the positions of its entries take the keys'
place, so that there are no ties. When few candidates are left over all ranks, these are exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ignite_prune._utils.exchange import Exchange

BINS = 1 << 14  # counts in a message, 8 bytes each
FEW = 1 << 13  # candidates that are exchanged, 24 bytes each
_LOWEST = -(1 << 62)


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(eq=False)
class ThresholdSearch:
    """The state of one pool's threshold: its candidates on this rank, and the interval of keys in which it lies.

    Args:
        need: how many of the interval's candidates are kept, the largest first.
        count: how many there are, over all ranks.
        first, last: bounds of the interval, inclusive.
        entries: of all tensors, as wholes: bounds the places.
        keys: of the candidates.
        places: minus their positions in the whole tensors, so that the earlier is the larger.
        counted: which of them this rank counts.
        tied: the key of all candidates in the interval, if their places are searched.
        threshold: key and place from which candidates are kept, when it is found.
    """

    need: int
    count: int
    first: int
    last: int
    entries: int
    keys: Tensor = field(default_factory=_nothing)
    places: Tensor = field(default_factory=_nothing)
    counted: Tensor = field(default_factory=_nothing)
    tied: int | None = None
    threshold: tuple[int, int] | None = None

    def within(self) -> Tensor:
        """Return which candidates of this rank are in the interval and counted here."""
        values = self.values
        inside = (values >= self.first) & (values <= self.last) & self.counted.bool()
        return inside if self.tied is None else inside & (self.keys == self.tied)

    @property
    def values(self) -> Tensor:
        """What the interval is of."""
        return self.keys if self.tied is None else self.places

    def dropped(self) -> Tensor:
        """Return which candidates are below the threshold."""
        assert self.threshold is not None
        key, place = self.threshold
        return (self.keys < key) | ((self.keys == key) & (self.places < place))

    def settle(self) -> None:
        """End where the interval is kept or dropped as a whole; go on to places where it is a single key."""
        if self.threshold is not None:
            return
        if self.need in (0, self.count):
            edge = self.first if self.need else self.last + 1
            self.threshold = (edge, _LOWEST) if self.tied is None else (self.tied, edge)
        elif self.first == self.last and self.tied is None:
            self.tied, self.first, self.last = self.first, -self.entries, 0

    def narrow(self, counts: Tensor) -> None:
        """Take the bin in which the threshold lies as the next interval."""
        from_top = counts.flip(0).cumsum(0)
        index = int(torch.searchsorted(from_top, self.need))
        chosen, bits = len(counts) - 1 - index, bin_width(self.first, self.last, len(counts))
        self.need -= int(from_top[index - 1]) if index else 0
        self.count = int(counts[chosen])
        edge = ((self.first >> bits) + chosen) << bits
        self.first, self.last = max(self.first, edge), min(edge + (1 << bits) - 1, self.last)


def search_together(searches: Sequence[ThresholdSearch], exchange: Exchange) -> None:
    """Find the threshold of each search, all of them in the same messages."""
    while True:
        for search in searches:
            search.settle()
        left = [search for search in searches if search.threshold is None]
        if not left:
            return
        if sum(search.count for search in left) <= FEW:
            return _exchanged(left, exchange)
        bins = max(2, BINS // len(left))
        own = [counts_of(each.values[each.within()], each.first, each.last, bins) for each in left]
        for search, counts in zip(left, exchange.sum(torch.stack(own))):
            search.narrow(counts)


def counts_of(values: Tensor, first: int, last: int, bins: int) -> Tensor:
    """Return how many values of [first, last] are in each bin."""
    bits = bin_width(first, last, bins)
    return torch.bincount((values >> bits) - (first >> bits), minlength=bins)


def bin_width(first: int, last: int, bins: int) -> int:
    """Return the width of bins, as a power of two: a difference of two keys may be too large for an int64."""
    return next(bits for bits in range(65) if (last >> bits) - (first >> bits) < bins)


def _exchanged(searches: Sequence[ThresholdSearch], exchange: Exchange) -> None:
    """Exchange the few candidates that are left, and find the thresholds among them."""
    mine = [
        torch.stack([torch.full_like(each.keys[at], index), each.keys[at], each.places[at]], 1)
        for index, each in enumerate(searches)
        for at in (each.within(),)
    ]
    rows = _together(torch.cat(mine), sum(search.count for search in searches), exchange).tolist()
    for index, search in enumerate(searches):
        ordered = sorted(((key, place) for pool, key, place in rows if pool == index), reverse=True)
        search.threshold = ordered[search.need - 1]


def _together(own: Tensor, total: int, exchange: Exchange) -> Tensor:
    """Return the rows of all ranks, ``total`` of them: by one message where padding them is cheap, else by two."""
    if total * exchange.ranks <= 2 * FEW:
        padded = torch.full((total, own.shape[1]), -1, dtype=torch.int64)
        padded[: len(own)] = own
        return exchange.collect(padded, "candidates").flatten(0, 1)
    sizes = exchange.collect(torch.tensor(len(own), dtype=torch.int64)).tolist()
    every, start = torch.zeros((total, own.shape[1]), dtype=torch.int64), sum(sizes[: exchange.rank])
    every[start : start + len(own)] = own
    return exchange.sum(every, "candidates")
