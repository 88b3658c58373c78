"""The upper triangular factor of a large matrix and its inverse, in the memory of the matrix.

A second moment of a layer's inputs is the largest thing that pruning it holds: 0.8 GB for 14,336 inputs. LAPACK's
factorisation by way of PyTorch, its inverse and the flips around them take three more matrices of this size. Here one
triangle is overwritten block by block; the other one keeps the matrix, so that a failure leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 256


def damp_(diagonal: Tensor, damping: float) -> None:
    """Set zeros of a matrix' diagonal to 1, and add ``damping`` times its mean, in place."""
    diagonal.masked_fill_(diagonal == 0, 1)
    diagonal.add_(diagonal.mean() * damping)


def upper_factor_(matrix: Tensor, damping: float) -> bool:
    r"""Overwrite a symmetric matrix by the upper triangular R with :math:`R R^T` equal to it, damped by :func:`damp_`.

    Args:
        matrix: ``(n, n)``; below the diagonal the result is 0.
        damping: relative damping.

    Returns:
        Whether there is a finite R with a finite inverse on its diagonal; otherwise the matrix is as it was, with its
        upper triangle taken from the lower one.

    Example:
        >>> matrix = torch.tensor([[5.0, 2.0], [2.0, 4.0]])
        >>> upper_factor_(matrix, 0.0), matrix
        (True, tensor([[2., 1.],
                [0., 2.]]))
    """
    squares = [(part, matrix[part, part].clone()) for part in _blocks(len(matrix))]
    damp_(matrix.diagonal(), damping)
    for part, _ in reversed(squares):
        lower, failed = torch.linalg.cholesky_ex(matrix[part, part].flip(0, 1))
        if bool(failed):
            break
        corner = matrix[part, part].copy_(lower.flip(0, 1))
        panel = matrix[: part.start, part]
        panel.copy_(torch.linalg.solve_triangular(corner.t(), panel, upper=False, left=False))
        for rows in _blocks(part.start):
            matrix[rows, rows.start : part.start].addmm_(panel[rows], panel[rows.start :].t(), alpha=-1)
    else:
        diagonal = matrix.diagonal()
        if bool((diagonal.isfinite() & diagonal.reciprocal().isfinite()).all()):
            matrix.triu_()
            return True
    for part, square in squares:
        matrix[part, part] = square
        matrix[part, part.stop :] = matrix[part.stop :, part].t()
    return False


def invert_upper_(upper: Tensor) -> Tensor:
    """Invert an upper triangular matrix in place and return it.

    Example:
        >>> invert_upper_(torch.tensor([[2.0, 1.0], [0.0, 4.0]]))
        tensor([[ 0.5000, -0.1250],
                [ 0.0000,  0.2500]])
    """
    for part in _blocks(len(upper)):
        corner, above = upper[part, part], upper[: part.start, part]
        eye = torch.eye(len(corner), dtype=upper.dtype, device=upper.device)
        corner.copy_(torch.linalg.solve_triangular(corner, eye, upper=True))
        above.copy_(upper[: part.start, : part.start] @ (above @ corner).neg_())
    return upper


def _blocks(stop: int) -> Iterator[slice]:
    for start in range(0, stop, _BLOCK):
        yield slice(start, min(start + _BLOCK, stop))
