"""Exact top-k within each row of tensors of which each rank holds a part.

Where rows lie on the ranks as wholes, nothing but the numbers of living entries is exchanged, and these only if some
are pruned. Where rows are split, the thresholds of all rows are searched together: each row has an interval of keys, of
which ranks count the entries in a few bins, so what is exchanged grows with the rows, not with the entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.score_keys import keys_of, zero_bits
from ignite_prune._utils.shard import Part
from ignite_prune._utils.topk_by_row import equal_shares, keep_top_of_rows

_BITS = 4  # of a key that a message decides


@dataclass
class RowTask:
    """One tensor, of whose rows each keeps its share.

    Args:
        scores: returns those of this rank's part.
        alive: bool, in the scores' shape; None if all are.
        part: where it lies, in entries.
        dim: the dimension that indexes rows.
        keep: number of entries to keep, over all ranks.
        is_split: whether entries of a row lie on several ranks; equal on all ranks.
    """

    scores: Callable[[], Tensor]
    alive: Tensor | None
    part: Part
    dim: int
    keep: int
    is_split: bool

    @property
    def rows(self) -> int:
        """The number of rows of the whole tensor."""
        return self.part.shape[self.dim]

    @property
    def mine(self) -> slice:
        """Which rows lie here."""
        return slice(self.part.start[self.dim], self.part.start[self.dim] + self.part.size[self.dim])

    def living(self) -> Tensor:
        """Return how many living entries of each row this rank counts."""
        found = torch.zeros(self.rows, dtype=torch.int32)
        if self.part.counted:
            size = torch.Size(self.part.size).numel() // max(self.part.size[self.dim], 1)
            alive = self.alive
            found[self.mine] = size if alive is None else alive.movedim(self.dim, 0).flatten(1).sum(1).cpu().int()
        return found


@dataclass
class _Search:
    """The thresholds of a tensor's rows: kept are entries of larger keys, and of the same key those of first places.

    Args:
        task: the tensor.
        first, last: bounds of each row's interval of keys, or of places where all keys in it are equal.
        need: how many entries of the interval are kept.
        count: how many there are.
        tied: whether the interval is one of places, minus the index in the row.
        key: the key of the entries in it then.
        shift: of the keys.
    """

    task: RowTask
    first: Tensor
    last: Tensor
    need: Tensor
    count: Tensor
    shift: int
    tied: Tensor = field(init=False)
    key: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.tied, self.key = torch.zeros_like(self.first, dtype=torch.bool), torch.zeros_like(self.first)

    @property
    def open(self) -> Tensor:
        """Which rows have an interval that is neither kept nor dropped as a whole."""
        return (self.need > 0) & (self.need < self.count)

    def settle(self) -> int:
        """Go on to places where an interval is one key; return the number of bits of the widest open interval."""
        single = self.open & ~self.tied & (self.first == self.last)
        self.key = torch.where(single, self.first, self.key)
        self.tied |= single
        entries = torch.Size(self.task.part.shape).numel() // max(self.task.rows, 1)
        self.first, self.last = self.first.masked_fill(single, -entries), self.last.masked_fill(single, 0)
        widths = (self.last - self.first)[self.open]
        return int(widths.max()).bit_length() if len(widths) else 0

    def own(self, bits: int) -> Tensor:
        """Return this rank's counts in the bins of each row, ``(rows, bins)``."""
        found, rows = torch.zeros((self.task.rows, 1 << _BITS), dtype=torch.int32), self.task.mine
        if not self.task.part.counted:
            return found
        values, inside = self._values()
        first, last, is_open = (each[rows].unsqueeze(1) for each in (self.first, self.last, self.open))
        inside &= (values >= first) & (values <= last) & is_open
        places = ((values - first) >> bits) + (torch.arange(len(values)) << _BITS).unsqueeze(1)
        counts = torch.bincount(places[inside], minlength=len(values) << _BITS)
        found[rows] = counts.view(len(values), -1).int()
        return found

    def narrow(self, counts: Tensor, bits: int) -> None:
        """Take the bin with the threshold as each open row's interval, from the counts of all ranks."""
        is_open, from_top = self.open, counts.flip(1).cumsum(1)
        index = (from_top < self.need.unsqueeze(1)).sum(1).clamp(max=counts.shape[1] - 1)
        at = index.unsqueeze(1)
        inside = counts.flip(1).gather(1, at).squeeze(1).long()
        above = from_top.gather(1, at).squeeze(1) - inside
        start = self.first + ((counts.shape[1] - 1 - index) << bits)
        self.last = torch.where(is_open, torch.minimum(self.last, start + (1 << bits) - 1), self.last)
        self.first = torch.where(is_open, start, self.first)
        self.need = torch.where(is_open, self.need - above, self.need)
        self.count = torch.where(is_open, inside, self.count)

    def kept(self) -> Tensor:
        """Return the mask of this rank's part, when no row is open."""
        rows, task = self.task.mine, self.task
        values, _ = self._values()
        bound = torch.where(self.need > 0, self.first, self.last + 1)[rows].unsqueeze(1)
        keys, tied, key = self._keys(), self.tied[rows].unsqueeze(1), self.key[rows].unsqueeze(1)
        kept = torch.where(tied, (keys > key) | ((keys == key) & (values >= bound)), keys >= bound)
        if task.alive is not None:
            kept &= task.alive.movedim(task.dim, 0).flatten(1).cpu()
        return (
            kept.view(task.part.size[task.dim], *_without(task.part.size, task.dim)).movedim(0, task.dim).contiguous()
        )

    def _keys(self) -> Tensor:
        return keys_of(self.task.scores().movedim(self.task.dim, 0).flatten(1).cpu(), self.shift)

    def _values(self) -> tuple[Tensor, Tensor]:
        """Return what the intervals are of, for each entry, and which entries may be in them."""
        keys, task, rows = self._keys(), self.task, self.task.mine
        shape, start, size = (_without(each, task.dim) for each in (task.part.shape, task.part.start, task.part.size))
        places = -Part(shape, start, size).positions(torch.arange(keys.shape[1])).expand_as(keys)
        tied, key = self.tied[rows].unsqueeze(1), self.key[rows].unsqueeze(1)
        alive = torch.ones_like(keys, dtype=torch.bool)
        if task.alive is not None:
            alive &= task.alive.movedim(task.dim, 0).flatten(1).cpu()
        return torch.where(tied, places, keys), alive & (~tied | (keys == key))


def _without(sizes: Sequence[int], dim: int) -> tuple[int, ...]:
    return (*sizes[:dim], *sizes[dim + 1 :])


def keep_top_of_rows_of_all(tasks: Sequence[RowTask], exchange: Exchange) -> list[Tensor]:
    """Return the mask of this rank's part of each tensor: of its rows the largest, as many of each as of the others.

    Every rank calls it. The first rows get the remainder, and of equal scores the first in the row is kept, as
    :func:`~ignite_prune._utils.topk_by_row.keep_top_by_row` does.
    """
    quotas, searches, masks = _quotas(tasks, exchange), dict[int, _Search](), dict[int, Tensor]()
    for index, (task, (living, quota)) in enumerate(zip(tasks, quotas)):
        if task.is_split:
            searches[index] = _Search(task, quota * 0, quota * 0, quota, living, 0)
        else:
            own = task.scores()
            masks[index] = keep_top_of_rows(own, task.alive, quota[task.mine].to(own.device), task.dim)
    if searches:
        _search(list(searches.values()), exchange)
        masks |= {index: search.kept().to(tasks[index].scores().device) for index, search in searches.items()}
    return [masks[index] for index in range(len(tasks))]


def _quotas(tasks: Sequence[RowTask], exchange: Exchange) -> list[tuple[Tensor, Tensor]]:
    """Return how many entries of each row are alive, and how many are kept."""
    if not tasks:
        return []
    if all(each.alive is None for each in tasks):  # on all ranks then
        rows = [torch.full((each.rows,), math.prod(_without(each.part.shape, each.dim))) for each in tasks]
    else:
        living = exchange.sum(torch.cat([each.living() for each in tasks]), "living entries of rows")
        rows = list(torch.split(living.long(), [each.rows for each in tasks]))
    return [(each, equal_shares(each, task.keep)) for each, task in zip(rows, tasks)]


def _search(searches: Sequence[_Search], exchange: Exchange) -> None:
    """Find the thresholds of all rows of all tensors, in the same messages."""
    own = torch.tensor([_bounds(search.task) for search in searches], dtype=torch.float64)
    found = exchange.collect(own, "bounds of scores")
    for index, search in enumerate(searches):
        search.shift = int(found[:, index, 0].min()) % 64
        ends = torch.stack([found[:, index, 1].min(), found[:, index, 2].max()])
        first, last = keys_of(ends, search.shift).tolist() if ends.isfinite().all() else (0, 0)
        search.first, search.last = search.first + first, search.last + last
    while left := [(search, search.settle()) for search in searches if bool(search.open.any())]:
        cuts = [(search, max(0, bits - _BITS)) for search, bits in left]
        counts = exchange.sum(torch.cat([search.own(bits) for search, bits in cuts]), "counts in rows")
        for (search, bits), found in zip(cuts, torch.split(counts, [each.task.rows for each, _ in cuts])):
            search.narrow(found, bits)


def _bounds(task: RowTask) -> tuple[float, float, float]:
    """Return the zero bits of this rank's scores, the least and the largest."""
    scores = task.scores()
    living = scores if task.alive is None else scores[task.alive]
    if not living.numel():
        return zero_bits(scores.dtype), math.inf, -math.inf
    least, largest = living.aminmax()
    return zero_bits(scores.dtype), float(least), float(largest)
