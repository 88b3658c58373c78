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
    squares = [(part, matrix[part, part].clone()) for part in _blocks(len(matrix))]
    damp_(matrix.diagonal(), damping)
    if _factor_upper(matrix):
        _invert_upper(matrix)
        if all(map(math.isfinite, matrix.aminmax())):
            matrix.triu_()
            return True
    for part, square in squares:
        matrix[part, part] = square
        matrix[part, part.stop :] = matrix[part.stop :, part].t()
    return False


def _factor_upper(matrix: Tensor) -> bool:
    """Overwrite the upper triangle by R; return whether it is finite, with a finite inverse on its diagonal."""
    for part in reversed(list(_blocks(len(matrix)))):
        lower, failed = torch.linalg.cholesky_ex(matrix[part, part].flip(0, 1))
        if bool(failed):
            return False
        corner = matrix[part, part].copy_(lower.flip(0, 1))
        panel = matrix[: part.start, part]
        panel.copy_(torch.linalg.solve_triangular(corner.t(), panel, upper=False, left=False))
        for rows in _blocks(part.start):
            matrix[rows, rows.start : part.start].addmm_(panel[rows], panel[rows.start :].t(), alpha=-1)
    diagonal = matrix.diagonal()
    return bool((diagonal.isfinite() & diagonal.reciprocal().isfinite()).all())


def _invert_upper(matrix: Tensor) -> None:
    """Invert the upper triangle in place; below the blocks on the diagonal nothing is read or written."""
    for part in _blocks(len(matrix)):
        corner, above = matrix[part, part], matrix[: part.start, part]
        eye = torch.eye(len(corner), dtype=matrix.dtype, device=matrix.device)
        corner.copy_(torch.linalg.solve_triangular(corner, eye, upper=True))
        product = (above @ corner).neg_()
        for rows in _blocks(part.start):
            factors = matrix[rows, : part.start].clone()
            factors[:, : rows.start] = 0  # the same bits as of the whole product, unlike a shorter sum
            above[rows] = factors @ product


def _blocks(stop: int) -> Iterator[slice]:
    for start in range(0, stop, _BLOCK):
        yield slice(start, min(start + _BLOCK, stop))
