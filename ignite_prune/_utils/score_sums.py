"""Counts of scores over ranks, with sums of them, in intervals that narrow until what is left can be listed.

An allocation may depend on sums over the ranked scores (LAMP divides each by the sum of the larger ones, a budget is a
sum of the smallest). An interval of integer keys is cut into bins, of each of which all ranks together count the
entries and sum a function of them; what is above and below the interval is known as two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ignite_prune._utils.score_keys import key_of, keys_of, number_of, zero_bits
from ignite_prune._utils.sharded_top import Bounds, Scored
from ignite_prune._utils.sum_together import OverRanks
from ignite_prune._utils.threshold_search import FEW, bin_width

BINS = 1 << 13  # bins in a message, 16 bytes each
_PIECE = 1 << 18  # entries whose keys are computed at once


class Ranks(Protocol):
    """What of an exchange is read here."""

    ranks: int
    rank: int


class ScoreSums:
    """The scores of some tensors, as one, within an interval of keys.

    Args:
        tensors: this rank's parts of them; scores of at least 0.
        power: the sums are of scores to this power.

    Attributes:
        first, last: bounds of the interval, inclusive.
        above, below: number and sum of the entries above and below it.
        edges: the lower bounds of the bins, as scores; the last one is the upper bound of the interval.
        table: number and sum of the entries in each bin, ``(2, bins)``.
    """

    def __init__(self, tensors: Sequence[Scored], power: int) -> None:
        self._tensors, self._power = [each for each in tensors if each.part.counted], power
        self._shift, self._is_narrowed, self._inside = 0, False, (0, 0.0)
        self._held: Tensor | None = None
        self._own, self._expected = torch.zeros(2, 0), 0  # this rank's table, and how many keys of it stay
        self.first = self.last = 0
        self.above, self.below = (0, 0.0), (0, 0.0)
        self._start = self._bits = 0
        self.table, self.edges = torch.zeros(2, 0), torch.zeros(0)

    @property
    def is_listed(self) -> bool:
        """Whether each bin is one key, so that the table is all that there is to know."""
        return self._bits == 0

    @property
    def inside(self) -> tuple[int, float]:
        """Number and sum of the entries in the interval."""
        return self._inside

    def bounds(self) -> Tensor:
        """Return this rank's zero bits, and the least and the largest living score (inf and −inf without any)."""
        least, largest, bits = torch.inf, -torch.inf, 64
        for tensor in self._tensors:
            scores = tensor.scores()
            living = scores if tensor.alive is None else scores[tensor.alive]
            bits = min(bits, zero_bits(scores.dtype))
            if living.numel():
                low, high = living.aminmax()
                least, largest = min(least, float(low)), max(largest, float(high))
        return torch.tensor([bits, least, largest], dtype=torch.float64)

    def begin(self, bounds: Tensor) -> None:
        """Start from the :meth:`bounds` of all ranks, ``(ranks, 3)``."""
        self._shift = int(bounds[:, 0].min()) % 64
        least, largest = float(bounds[:, 1].min()), float(bounds[:, 2].max())
        if least > largest:  # no entries
            least = largest = 0.0
        self.first, self.last = key_of(least, self._shift), key_of(largest, self._shift)

    def own(self, bins: int) -> Tensor:
        """Return this rank's table of the interval."""
        self._bits = bin_width(self.first, self.last, bins)
        self._start = self.first >> self._bits
        table = torch.zeros((2, bins), dtype=torch.float64)
        for keys in self._pieces():
            places = (keys >> self._bits) - self._start
            table[0] += torch.bincount(places, minlength=bins).cpu()
            terms = _numbers(keys, self._shift) ** self._power
            table[1] += torch.bincount(places, weights=terms, minlength=bins).cpu()
        self._own = table.clone()
        return table

    def _pieces(self) -> Iterator[Tensor]:
        """Yield the keys in the interval; they are held from the second round on, when few are left."""
        if self._held is not None:
            self._held = self._held[(self._held >= self.first) & (self._held <= self.last)]
            yield self._held
            return
        held, at = torch.empty(self._expected, dtype=torch.int64), 0  # before large temporaries, as it stays
        for tensor in self._tensors:
            scores = tensor.scores().reshape(-1)
            flat = scores if tensor.alive is None else scores[tensor.alive.reshape(-1)]
            for piece in torch.split(flat, _PIECE):
                keys = keys_of(piece, self._shift)
                if self._is_narrowed:
                    keys = keys[(keys >= self.first) & (keys <= self.last)]
                    held[at : at + len(keys)], at = keys.cpu(), at + len(keys)
                yield keys
        self._held = held if self._is_narrowed else None

    def take(self, table: Tensor) -> None:
        """Set the table of all ranks."""
        self.table, (count, total) = table, table.sum(1).tolist()
        self._inside = int(count), total
        starts = (torch.arange(table.shape[1] + 1) + self._start) << self._bits
        self.edges = _numbers(starts.clamp(self.first, max(self.last + 1, self.first)), self._shift)

    def narrow(self, low: int, high: int) -> None:
        """Go on with the bins from ``low`` on and before ``high``, without empty ones at the ends."""
        filled = self.table[0, low:high].nonzero().flatten().tolist()
        low, high = (low + filled[0], low + filled[-1] + 1) if filled else (low, low)
        count, total = self.table[:, high:].sum(1).tolist()
        self.above = self.above[0] + int(count), self.above[1] + total
        count, total = self.table[:, :low].sum(1).tolist()
        self.below = self.below[0] + int(count), self.below[1] + total
        end = ((self._start + high) << self._bits) - 1
        self.first, self.last = max(self.first, (self._start + low) << self._bits), min(self.last, end)
        count, total = self.table[:, low:high].sum(1).tolist()
        self._is_narrowed, self._inside = True, (int(count), total)
        self._expected = int(self._own[0, low:high].sum())

    def around(self) -> Bounds:
        """Return scores below and above the interval."""
        low = number_of(self.first - 1, self._shift) if self.first > 0 else -math.inf
        return Bounds(low, number_of(self.last + 1, self._shift), self._shift)

    def listed(self) -> Tensor:
        """Return the scores in the interval over all ranks, descending; see :attr:`is_listed`."""
        counts = self.table[0].long()
        return self.edges[: len(counts)].repeat_interleave(counts).flip(0)

    def held(self) -> Tensor:
        """Return this rank's scores in the interval."""
        return torch.cat(
            [torch.empty(0, dtype=torch.float64), *(_numbers(k, self._shift).cpu() for k in self._pieces())]
        )


def _numbers(keys: Tensor, shift: int) -> Tensor:
    """Return the scores of keys; of scores of at least 0, which have the order of their bits."""
    return (keys << shift).view(torch.float64)


def narrowed(
    rows: Sequence[ScoreSums], decide: Callable[[Sequence[ScoreSums]], Sequence[tuple[int, int]]], exchange: Ranks
) -> OverRanks[list[Tensor]]:
    """Narrow the rows' intervals and return the scores that are left in each over all ranks, descending.

    Args:
        rows: with intervals of their own.
        decide: returns the bins of each row that may matter, as (low, high), from the tables of all.
        exchange: the number of ranks, and which one this is.
    """
    own = torch.zeros((exchange.ranks, len(rows), 3), dtype=torch.float64)
    own[exchange.rank] = torch.stack([row.bounds() for row in rows])
    bounds = yield own
    for index, row in enumerate(rows):
        row.begin(bounds[:, index])
    bins, size = max(16, BINS // len(rows)), -1
    while True:
        tables = yield torch.stack([row.own(bins) for row in rows])
        for row, table in zip(rows, tables):
            row.take(table)
        if all(row.is_listed for row in rows):
            return [row.listed() for row in rows]
        for row, (low, high) in zip(rows, decide(rows)):
            row.narrow(low, high)
        before, size = size, sum(row.last - row.first for row in rows)
        if sum(row.inside[0] for row in rows) <= FEW or size == before:
            return (yield from _exchanged(rows, exchange))


def _exchanged(rows: Sequence[ScoreSums], exchange: Ranks) -> OverRanks[list[Tensor]]:
    """Return the few scores that are left in each row, descending, from all ranks."""
    mine, total = [row.held() for row in rows], sum(row.inside[0] for row in rows)
    numbers = torch.cat(mine)
    owners = torch.cat([torch.full((len(each),), index + 1.0) for index, each in enumerate(mine)])
    if total * exchange.ranks <= FEW:  # a place for all of them for each rank
        first, size = total * exchange.rank, total * exchange.ranks
    else:
        own = torch.zeros(exchange.ranks, dtype=torch.float64)
        own[exchange.rank] = len(numbers)
        sizes = yield own
        first, size = int(sizes[: exchange.rank].sum()), total
    every = torch.zeros((2, size), dtype=torch.float64)
    every[:, first : first + len(numbers)] = torch.stack([owners.double(), numbers])
    owners, numbers = yield every
    return [numbers[owners == index + 1].sort(descending=True).values for index in range(len(rows))]
