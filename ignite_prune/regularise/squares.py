"""Sums of squares along dimensions, computed in pieces that fit in the cache, at the speed of a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_PIECE = 1 << 17
FEW = 16


def wide(tensor: Tensor) -> torch.dtype:
    """Return a real dtype of at least float32, in which squares rarely overflow or underflow."""
    return torch.promote_types(tensor.dtype.to_real(), torch.float32)


def squares(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Return sums of squares along ``dims``, which are in ascending order, may be empty, and are kept with size 1.

    Example:
        >>> squares(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), (1,))
        tensor([[5.],
                [1.]])
    """
    if not dims or not tensor.numel() or tensor.device.type != "cpu" or tensor.is_complex():
        found = tensor.abs().to(wide(tensor)).square_()
        return found.sum(tuple(dims), keepdim=True) if dims else found
    # A temporary of the whole tensor costs more than all the arithmetic.
    size = max(1, _PIECE * len(tensor) // tensor.numel())
    pieces = [_piece(piece.to(wide(tensor)), list(dims)) for piece in torch.split(tensor, size)]
    return torch.stack(pieces).sum(0) if 0 in dims else torch.cat(pieces)


def _piece(piece: Tensor, dims: list[int]) -> Tensor:
    last = piece.ndim - 1
    dims = [dim for dim in dims if piece.shape[dim] > 1]
    if dims == [last] and piece.shape[last] > FEW // 2:
        norms: Tensor = torch.linalg.vector_norm(piece, dim=last, keepdim=True)
        return norms.square_()
    found = piece.square()
    for dim in dims:
        if dim == last and found.shape[last] <= FEW:  # a matrix product is faster than a sum over few neighbours
            found = found @ found.new_ones(found.shape[last], 1)
        else:
            found = found.sum(dim, keepdim=True)
    return found
