"""The part of a tensor that is kept when dimensions are sliced."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Kept = Mapping[int, Tensor]
"""The indices that a tensor keeps, by dimension."""


def kept_of(tensor: Tensor, kept: Kept) -> Tensor:
    """Return a copy of a tensor with only the kept indices of each dimension; the tensor itself if all are kept.

    Example:
        >>> import torch
        >>> kept_of(torch.arange(6).view(2, 3), {1: torch.tensor([0, 2])})
        tensor([[0, 2],
                [3, 5]])
    """
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor
