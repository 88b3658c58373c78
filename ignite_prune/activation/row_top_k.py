"""The exact top-k of every row at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def top_of_rows(scores: Tensor, k: int) -> Tensor:
    """Return a bool mask of the ``k`` largest entries of each row; among equal ones the first are taken.

    NaN counts as infinity, so that it is never dropped for a finite number.

    Args:
        scores: (rows, entries), floating point.
        k: how many, none below 1, all from the number of entries on.

    Example:
        >>> top_of_rows(torch.tensor([[1.0, 2.0, 2.0, 2.0], [4.0, 1.0, 3.0, 2.0]]), 2)
        tensor([[False,  True,  True, False],
                [ True, False,  True, False]])
    """
    if k <= 0 or k >= scores.shape[1]:
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    if scores.device.type != "cpu" or torch.compiler.is_compiling():  # to look at values would mean to wait
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
