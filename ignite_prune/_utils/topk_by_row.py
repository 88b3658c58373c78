"""Exact top-k with equal shares of the rows of one tensor."""

from __future__ import annotations

import math
from itertools import repeat

import torch
from torch import Tensor

_ENTRIES = 1 << 16  # sorted at once: a sort takes several times the memory of what it sorts


def keep_top_by_row(scores: Tensor, alive: Tensor | None, keep: int, dim: int = 0) -> Tensor:
    """Return a bool mask of ``keep`` entries, equally many of each row (its largest); the first rows get the remainder.

    A row with fewer alive entries than its share keeps those, and the others share the rest.

    Args:
        scores: any shape.
        alive: bool, of the same shape, or None if all entries are alive.
        keep: total number of entries to keep, at most the number of alive ones.
        dim: the dimension that indexes rows.

    Example:
        >>> keep_top_by_row(torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 3.0]]), None, 3)
        tensor([[ True,  True, False],
                [False, False,  True]])
    """
    return keep_top_of_rows(scores, alive, equal_shares(living_of_rows(scores, alive, dim), keep), dim)


def living_of_rows(scores: Tensor, alive: Tensor | None, dim: int) -> Tensor:
    """Return the number of alive entries of each row."""
    moved = scores.movedim(dim, 0).flatten(1)
    if alive is None:
        return torch.full((len(moved),), moved.shape[1], device=scores.device)
    return alive.movedim(dim, 0).flatten(1).sum(1)


def keep_top_of_rows(scores: Tensor, alive: Tensor | None, quota: Tensor, dim: int) -> Tensor:
    """Return a bool mask of the largest entries of each row, as many as its quota says; of equal ones the first."""
    moved = scores.movedim(dim, 0)
    rows = moved.flatten(1)
    living = None if alive is None else alive.movedim(dim, 0).flatten(1)
    kept = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    ranks = torch.arange(rows.shape[1], device=rows.device)
    at_once = max(1, _ENTRIES // max(1, rows.shape[1]))
    parts = (torch.split(each, at_once) for each in (rows, quota, kept))
    pruned = repeat(None) if living is None else (~each for each in torch.split(living, at_once))
    for part, quota_part, out, gone in zip(*parts, pruned):
        scored = part if gone is None else part.masked_fill(gone, -math.inf)
        order = scored.sort(dim=1, descending=True, stable=True).indices
        out.scatter_(1, order, ranks < quota_part.unsqueeze(1))
    return kept.view(moved.shape).movedim(0, dim).contiguous()


def equal_shares(caps: Tensor, total: int) -> Tensor:
    """Divide ``total`` into equal whole parts of at most their caps; the first get the remainder."""
    shares = torch.zeros_like(caps)
    while total > 0:
        free = (shares < caps).nonzero().squeeze(1)
        if not free.numel():
            break
        part, rest = divmod(total, free.numel())
        offer = torch.full_like(free, part)
        offer[:rest] += 1
        taken = torch.minimum(offer, caps[free] - shares[free])
        shares[free] += taken
        total -= int(taken.sum())
    return shares
