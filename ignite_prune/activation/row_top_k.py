"""Exact top-k masks of all rows of a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def top_of_rows(scores: Tensor, k: int) -> Tensor:
    """Return a bool mask of the ``k`` largest entries of each row; of equal entries the first are taken.

    NaN is treated as infinity, so it is never dropped in favour of a finite number.

    Args:
        scores: (rows, entries), floating point.
        k: number of entries; none are taken if it is below 1, all if it is at least the row's length.

    Example:
        >>> top_of_rows(torch.tensor([[1.0, 2.0, 2.0, 2.0], [4.0, 1.0, 3.0, 2.0]]), 2)
        tensor([[False,  True,  True, False],
                [ True, False,  True, False]])
    """
    if k <= 0 or k >= scores.shape[1]:
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    if scores.device.type != "cpu" or torch.compiler.is_compiling():  # no branches on values, which synchronise
        return _first_of_ties(scores.masked_fill(scores.isnan(), math.inf), k)
    threshold = _kth(scores, k)
    top = scores >= threshold
    if bool((top.count_nonzero(dim=1) == k).all()):
        return top
    if bool(threshold.isnan().any()):
        return _first_of_ties(scores.masked_fill(scores.isnan(), math.inf), k)
    return _first_of_ties(scores, k, threshold)


def _first_of_ties(scores: Tensor, k: int, threshold: Tensor | None = None) -> Tensor:
    threshold = _kth(scores, k) if threshold is None else threshold
    above = scores > threshold
    ties = scores == threshold
    room = k - above.sum(dim=1, keepdim=True)
    return above | (ties & (ties.cumsum(dim=1) <= room))


def _kth(scores: Tensor, k: int) -> Tensor:
    return scores.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
