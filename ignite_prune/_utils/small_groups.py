"""Ranks within small groups, by comparing entries in pairs instead of sorting.

A sort of four entries costs more for its bookkeeping than for its comparisons: sorting 25 M weights in groups of four
takes about 60 times as long as copying them. Here the k-th entries of many groups form a row, and whole rows are
compared at once. An entry's rank is the number of entries that beat it. Of equal entries the earlier beats the later,
which is what a stable sort gives. Pieces stay in the cache, and their temporaries are allocated once: new memory costs
a page fault every 4 KiB, which takes longer than the comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ignite_prune._utils.compare import above, below, copy_turned

LARGEST = 16  # entries of a group; above, sorting costs less
_PIECE = 1 << 17  # entries that stay in a core's cache


def best_in_groups(groups: Tensor, keep: int, mask: Tensor | None = None) -> Tensor:
    """Return which entries are among the ``keep`` largest of their group, as bool; of equal ones the earlier.

    Args:
        groups: ``(..., entries of a group)``, any strides, no NaN.
        keep: number of entries of each group that are True.
        mask: bool, of the same shape: entries that are False here count as −∞; None: there are none.

    Example:
        >>> best_in_groups(torch.tensor([[1.0, 5.0, 5.0, 2.0]]), keep=1)
        tensor([[False,  True, False, False]])
    """
    best = torch.empty_like(groups, dtype=torch.bool)
    parts = torch.split(best, *_cut(groups))
    ranks_of, wins_of = _Buffer(parts[0], torch.uint8), _Buffer(parts[0], torch.bool)
    order = torch.arange(groups.shape[-1], device=groups.device).view(-1, *[1] * (groups.dim() - 1))
    for rows, part in zip(_rows(groups, mask), parts):
        ranks, wins = ranks_of(rows.shape).copy_(order), wins_of(rows.shape)  # each is beaten by all earlier ones, and
        for apart in range(1, len(rows)):
            above(rows[apart:], rows[:-apart], wins[apart:])
            ranks[:-apart] += wins[apart:].view(torch.uint8)
            ranks[apart:] -= wins[apart:].view(torch.uint8)
        part.movedim(-1, 0).copy_(below(ranks, keep, wins))
    return best


def least_in_groups(groups: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """Return the ``count`` smallest entries of each group, ``(..., count)``, in ascending order.

    The arguments are those of :func:`best_in_groups`.

    Example:
        >>> least_in_groups(torch.tensor([[1.0, 5.0, 0.5, 2.0]]), 2)
        tensor([[0.5000, 1.0000]])
    """
    least = torch.empty_like(groups[..., :count], memory_format=torch.contiguous_format)
    smaller = _Buffer(torch.split(groups, *_cut(groups))[0][..., 0], groups.dtype)
    for rows, part in zip(_rows(groups, mask), torch.split(least, *_cut(groups))):
        for a, b in _exchanges(len(rows)):
            least_of_two = torch.minimum(rows[a], rows[b], out=smaller(rows.shape[1:]))
            torch.maximum(rows[a], rows[b], out=rows[b])
            rows[a] = least_of_two
        part.movedim(-1, 0).copy_(rows[:count])
    return least


class _Buffer:
    """Memory for one piece, reused for all pieces."""

    def __init__(self, largest: Tensor, dtype: torch.dtype) -> None:
        self._held = torch.empty(largest.numel(), dtype=dtype, device=largest.device)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        size = torch.Size(shape)
        return self._held[: size.numel()].view(size)


def _cut(groups: Tensor) -> tuple[int, int]:
    """Return how many slices are one piece, and along which dimension: the longest."""
    dim = max(range(groups.dim() - 1), key=lambda each: groups.shape[each])
    return max(_PIECE * groups.shape[dim] // max(groups.numel(), 1), 1), dim


def _rows(groups: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
    """Yield the groups in pieces, as copies ``(entries of a group, ...)``; valid until the next one."""
    pieces = torch.split(groups, *_cut(groups))
    masks = [None] * len(pieces) if mask is None else torch.split(mask, *_cut(groups))
    buffer = _Buffer(pieces[0], groups.dtype)
    for piece, kept in zip(pieces, masks):
        moved = piece.movedim(-1, 0)
        rows = copy_turned(moved, buffer(moved.shape))
        yield rows if kept is None else rows.masked_fill_(~kept.movedim(-1, 0), -torch.inf)


def _exchanges(size: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs which, put in order one after the other, sort ``size`` entries (Batcher's merge exchange)."""
    length = 1
    while length < size:
        step = length
        while step:
            for first in range(step % length, size - step, 2 * step):
                for a in range(first, min(first + step, size - step)):
                    if a // (2 * length) == (a + step) // (2 * length):
                        yield a, a + step
            step //= 2
        length *= 2
