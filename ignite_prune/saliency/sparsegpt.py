r"""SparseGPT's score: error of a row's output without a weight, after an optimal update of the columns to its right.

For a layer :math:`y = W x` the Hessian of :math:`\|W x - \hat W x\|^2` is :math:`H = \frac2n \sum x x^T`, ``(n, n)``
over the inputs and the same for every row.

References:
    Frantar, Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot", 2023,
    arXiv 2301.00774.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_positive
from ignite_prune._utils.triangular import damp_, inverse_factor_
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import InputMoments, Moments

_SMALL = 1024  # largest number of columns for which float64 is cheap
_BASE = 256


def dead_columns(hessian: Tensor) -> Tensor:
    """Return which inputs were always 0: bool ``(n,)``, True where :math:`H_{jj} = 0`."""
    return hessian.diagonal() == 0


def inverse_factor(hessian: Tensor, damping: float, overwrite: bool = False) -> Tensor:
    r"""Return the upper Cholesky factor :math:`U` of :math:`\tilde H^{-1} = U^T U`.

    :math:`\tilde H` is H with 1 on the diagonal of dead columns, plus ``damping`` times the mean of its diagonal.
    One factorisation gives U without computing the inverse: :math:`\tilde H = R R^T` with R upper, :math:`U = R^{-1}`.

    Args:
        hessian: ``(n, n)``, symmetric.
        damping: relative damping, at least 0; 0.01 in the paper.
        overwrite: whether the result may be stored in ``hessian``; above 1024 columns no other memory of its size is
            used then. Otherwise, and where an error is raised, ``hessian`` is not changed.

    Returns:
        ``(n, n)``, in the dtype of ``hessian`` or at least float32. Up to 1024 columns are computed in float64; more
        in float32, or in float64 if that fails.

    Raises:
        ValueError: ``hessian`` is not square, ``damping`` is negative or not finite, or there is no finite inverse.

    Example:
        >>> inverse_factor(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), damping=0.0)
        tensor([[0.5000, 0.0000],
                [0.0000, 1.0000]])
    """
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"Argument hessian should have the shape (n, n), but given {tuple(hessian.shape)}")
    if isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 <= damping < math.inf:
        raise ValueError(f"Argument damping should be a finite number of at least 0, but given {damping!r}")
    single = torch.promote_types(hessian.dtype, torch.float32)
    if len(hessian) > _SMALL:
        matrix = hessian.to(single, copy=not overwrite)
        if inverse_factor_(matrix, damping):
            return matrix
        del matrix  # the next attempt takes more memory
    factor = _factor(hessian.double(), damping, single)
    if factor is not None:
        return factor
    raise ValueError(
        f"The Hessian has no finite inverse at damping={damping:g}; try a bigger damping, or more samples than the "
        f"{len(hessian)} columns, and check the inputs for NaN and infinity"
    )


def column_scores(weight2d: Tensor, factor: Tensor, dead: Tensor | None = None) -> Tensor:
    r"""Return :math:`w_{ij}^2 / U_{jj}^2`.

    Args:
        weight2d: ``(rows, n)``.
        factor: result of :func:`inverse_factor`, ``(n, n)``; or its diagonal, ``(n,)``.
        dead: result of :func:`dead_columns`, bool ``(n,)``: these columns score 0. None if no column is dead.

    Returns:
        Scores in the weight's shape, at least float32.

    Example:
        >>> column_scores(torch.tensor([[1.0, 2.0]]), torch.eye(2) / 2, torch.tensor([False, True]))
        tensor([[4., 0.]])
    """
    diagonal = factor if factor.dim() == 1 else factor.diagonal()
    scores = weight2d.detach().to(torch.promote_types(weight2d.dtype, torch.float32)).div(diagonal).square_()
    return scores if dead is None else scores.masked_fill_(dead, 0)


def _factor(hessian: Tensor, damping: float, dtype: torch.dtype) -> Tensor | None:
    """Return U, computed in the dtype of ``hessian``; None if there is none that is finite in ``dtype``."""
    flipped = hessian.flip(0, 1)  # a copy, whose lower factor is R flipped
    damp_(flipped.diagonal(), damping)
    lower, failed = torch.linalg.cholesky_ex(flipped)
    if bool(failed):
        return None
    del flipped  # as large as the result, as every temporary here would be
    _invert_lower(lower)
    factor = lower.flip(0, 1).to(dtype)
    return factor if bool(torch.isfinite(factor.sum())) or bool(torch.isfinite(factor).all()) else None


def _invert_lower(lower: Tensor) -> None:
    """Invert in place by recursive halving: a third of the work of solving against the identity."""
    n, half = len(lower), len(lower) // 2
    if n <= _BASE:
        eye = torch.eye(n, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        return
    _invert_lower(lower[:half, :half])
    _invert_lower(lower[half:, half:])
    lower[half:, :half] = (lower[half:, half:] @ (lower[half:, :half] @ lower[:half, :half])).neg_()


@dataclass(frozen=True)
class SparseGPT(Informed):
    r"""Output error without a weight, after updating the columns to its right: :math:`w_{ij}^2 / U_{jj}^2`.

    :math:`U` is the upper Cholesky factor of the inverse of the damped :math:`H = \tfrac2n \sum x x^T` over the layer's
    inputs (unfolded for a convolution). With ``repair.SparseGPT()`` the mask is chosen again, block by block, on the
    weights updated so far, as in the paper; the number of pruned weights stays the same. Memory: the square of the
    number of a layer's inputs.

    Args:
        block: columns per block.
        damping: damping relative to the mean of H's diagonal.

    Raises:
        TypeError, ValueError: ``block`` is not an int of at least 1, or ``damping`` not a finite number above 0.

    References:
        Frantar, Alistarh, "SparseGPT", 2023, arXiv 2301.00774.
    """

    block: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_positive("block", self.block, whole=True)
        check_positive("damping", self.damping)

    @property
    def need(self) -> InputMoments:
        return InputMoments()

    def formula(self, weight: Tensor, evidence: Moments) -> Tensor:
        if not weight.numel():
            return torch.zeros_like(weight)
        matrix = weight.t() if evidence.transposed else weight
        rows = matrix.flatten(1).chunk(len(evidence.sums))  # each group of a convolution has separate inputs
        scores = []
        for part, sums in zip(rows, evidence.sums):
            hessian = sums.to(weight.device) * evidence.scale
            scores.append(column_scores(part, inverse_factor(hessian, self.damping), dead_columns(hessian)))
        found = torch.cat(scores).view(matrix.shape)
        return found.t() if evidence.transposed else found
