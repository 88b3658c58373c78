"""The upper triangular factor of a large matrix and its inverse, in the memory of the matrix.

A second moment of a layer's inputs is the largest thing that pruning it holds: 0.8 GB for 14,336 inputs. LAPACK's
factorisation by way of PyTorch, its inverse and the flips around them take three more matrices of this size. Here one
triangle is overwritten block by block, first by the factor and then by its inverse; the other one keeps the matrix, so
that a failure of either leaves it as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 256


def damp_(diagonal: Tensor, damping: float) -> None:
    """Set zeros of a matrix' diagonal to 1, and add ``damping`` times its mean, in place."""
    diagonal.masked_fill_(diagonal == 0, 1)
    diagonal.add_(diagonal.mean() * damping)


def inverse_factor_(matrix: Tensor, damping: float) -> bool:
    r"""Overwrite a symmetric matrix by :math:`R^{-1}`, R upper, :math:`R R^T` equal to it, damped by :func:`damp_`.

    Args:
        matrix: ``(n, n)``; below the diagonal the result is 0.
        damping: relative damping.

    Returns:
        Whether the result is finite; otherwise the matrix is as it was, with its upper triangle taken from the lower
        one.

    Example:
        >>> matrix = torch.tensor([[20.0, 4.0], [4.0, 16.0]])
        >>> inverse_factor_(matrix, 0.0), matrix
        (True, tensor([[ 0.2294, -0.0574],
                [ 0.0000,  0.2500]]))
    """
    diagonal = matrix.diagonal().clone()
    damp_(matrix.diagonal(), damping)
    if _factor_upper(matrix):
        _invert_upper(matrix)
        if all(map(math.isfinite, matrix.aminmax())):
            matrix.triu_()
            return True
    for part in _blocks(len(matrix)):
        _put_upper(matrix[part, part], matrix[part, part].tril(-1).t())
        matrix[part, part.stop :] = matrix[part.stop :, part].t()
    matrix.diagonal().copy_(diagonal)
    return False


def _put_upper(square: Tensor, upper: Tensor) -> None:
    """Overwrite the upper triangle and the diagonal of a block."""
    square.tril_(-1).add_(upper)


def _factor_upper(matrix: Tensor) -> bool:
    """Overwrite the upper triangle by R; return whether its diagonal is finite, and the inverse of that."""
    for part in reversed(list(_blocks(len(matrix)))):
        lower, failed = torch.linalg.cholesky_ex(matrix[part, part].flip(0, 1))
        if bool(failed):
            return False
        corner = lower.flip(0, 1).contiguous()
        _put_upper(matrix[part, part], corner)
        panel = matrix[: part.start, part]
        panel.copy_(torch.linalg.solve_triangular(corner.t(), panel, upper=False, left=False))
        for rows in _blocks(part.start):
            square = matrix[rows, rows]
            below = square.tril(-1)
            matrix[rows, rows.start : part.start].addmm_(panel[rows], panel[rows.start :].t(), alpha=-1)
            square.triu_().add_(below)
    diagonal = matrix.diagonal()
    return bool((diagonal.isfinite() & diagonal.reciprocal().isfinite()).all())


def _invert_upper(matrix: Tensor) -> None:
    """Invert the upper triangle in place; what is below the diagonal is not changed."""
    for part in _blocks(len(matrix)):
        square, above = matrix[part, part], matrix[: part.start, part]
        eye = torch.eye(len(square), dtype=matrix.dtype, device=matrix.device)
        corner = torch.linalg.solve_triangular(square, eye, upper=True).contiguous()
        _put_upper(square, corner)
        above.copy_((above @ corner).neg_())
        for rows in _blocks(part.start):  # from the top, as each one needs those below it
            # With the zeros on the left it has the same bits as the whole product, unlike a shorter sum.
            above[rows] = matrix[rows, : part.start].triu(rows.start) @ above


def _blocks(stop: int) -> Iterator[slice]:
    for start in range(0, stop, _BLOCK):
        yield slice(start, min(start + _BLOCK, stop))
