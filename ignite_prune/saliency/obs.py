r"""Optimal Brain Surgeon with a block-diagonal Fisher: cost of a weight when the other weights are adjusted optimally.

The ``d`` entries of a weight, row-major, are divided into blocks of ``B``; ``blocks`` is a tensor ``(ceil(d/B), B, B)``
of the mean :math:`F = \frac1m \sum_k g_k g_k^T` within each block, the last one padded with zeros. Damping is added
when the blocks are used: :math:`F + \lambda I`. F can be any symmetric positive matrix, such as a Hessian.

References:
    Hassibi, Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", 1993;
    Singh, Alistarh, "WoodFisher", 2020, arXiv 2004.14340; Kurtic et al., "The Optimal BERT Surgeon", arXiv 2203.07259.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_positive
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import Fisher, FisherBlocks

_CHUNK = 2 << 20  # bytes of float64 blocks processed at a time; temporaries need about four times that


def add_outer_(blocks: Tensor, grads: Sequence[Tensor]) -> Tensor:
    r"""Add :math:`\sum_k g_k g_k^T` to the blocks in place; dividing by the number of gradients is left to the caller.

    Args:
        blocks: ``(ceil(d/B), B, B)``.
        grads: k flat gradients, each ``(d,)``.

    Returns:
        ``blocks``.

    Raises:
        ValueError: the shapes do not match.

    Example:
        >>> add_outer_(torch.zeros(2, 2, 2), [torch.tensor([1.0, 2.0, 3.0])])
        tensor([[[1., 2.],
                 [2., 4.]],
        <BLANKLINE>
                [[9., 0.],
                 [0., 0.]]])
    """
    if len({grad.shape for grad in grads}) != 1 or grads[0].dim() != 1:
        raise ValueError(f"Argument grads should have the shapes (d,), but given {[tuple(g.shape) for g in grads]}")
    size = _check(blocks, len(grads[0]))
    for first, last in _chunks(blocks):
        rows = torch.stack([grad[first * size : last * size] for grad in grads])
        cut = _cut(rows.to(blocks.dtype), size)  # (k, blocks, B)
        blocks[first:last].baddbmm_(cut.permute(1, 2, 0), cut.transpose(0, 1))
    return blocks


def inverse_diagonal(blocks: Tensor, d: int, damping: float) -> Tensor:
    r"""Return the diagonal of :math:`(F + \lambda I)^{-1}`, ``(d,)``, in the dtype of ``blocks`` or at least float32.

    Computed by Cholesky factorisation in float64, a few blocks at a time: it needs 8 MB in addition to ``blocks``, or
    the memory of four blocks if that is more.

    Args:
        blocks: ``(ceil(d/B), B, B)``.
        d: number of entries of the weight.
        damping: :math:`\lambda`, above 0.

    Raises:
        ValueError: a block is singular with this damping, ``damping`` is not above 0, or the shapes do not match.

    Example:
        >>> inverse_diagonal(torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]), 2, damping=1.0)
        tensor([0.5000, 0.2500])
    """
    size = _check(blocks, d, damping)
    diagonal = torch.empty(blocks.shape[:2], dtype=_at_least_float(blocks.dtype), device=blocks.device)
    eye = torch.eye(size, dtype=torch.float64, device=blocks.device)
    for first, last in _chunks(blocks):
        damped = blocks[first:last].to(torch.float64, copy=True)
        damped.diagonal(dim1=1, dim2=2).add_(damping)
        inverse = torch.linalg.solve_triangular(_cholesky(damped, damping), eye, upper=False)
        diagonal[first:last] = inverse.square_().sum(dim=1)  # A⁻¹ = L⁻ᵀ L⁻¹
    _check_finite(diagonal, damping)
    return diagonal.view(-1)[:d]


def saliencies(weight: Tensor, blocks: Tensor, damping: float) -> Tensor:
    r"""Return :math:`w_q^2 / (2 [(F + \lambda I)^{-1}]_{qq})`, the loss increase if q is removed and the others adjust.

    Args:
        weight: any shape, ``d`` entries.
        blocks: ``(ceil(d/B), B, B)``.
        damping: :math:`\lambda`, above 0.

    Returns:
        Scores in the weight's shape and dtype, or at least float32.

    Raises:
        ValueError: see :func:`inverse_diagonal`.

    Example:
        >>> saliencies(torch.tensor([[2.0, 1.0]]), torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]), damping=1.0)
        tensor([[4., 2.]])
    """
    weight = weight.detach()
    squares = weight.to(_at_least_float(weight.dtype)).square().div_(2)
    return squares.div_(inverse_diagonal(blocks, weight.numel(), damping).view(weight.shape))


def joint_update(weight: Tensor, kept_mask: Tensor, blocks: Tensor, damping: float) -> Tensor:
    r"""Adjust the kept weights so that setting all others to zero, jointly, increases the loss least.

    Minimises :math:`\tfrac12 \delta^T (F + \lambda I) \delta` subject to removed entries becoming 0: with K kept and Q
    removed in a block, :math:`\delta_K = (F_{KK} + \lambda I)^{-1} F_{KQ} w_Q`. Summing the updates of single weights,
    as public implementations do, is not this minimum and does not make the removed entries 0.

    Args:
        weight: any shape, ``d`` entries; entries that are already pruned enter with their value, usually 0.
        kept_mask: bool, in the weight's shape, True = kept.
        blocks: ``(ceil(d/B), B, B)``.
        damping: :math:`\lambda`, above 0.

    Returns:
        The new weight, of the same shape and dtype; removed entries are exactly 0.0.

    Raises:
        TypeError: ``kept_mask`` is not bool.
        ValueError: see :func:`inverse_diagonal`.

    Example:
        >>> fisher = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]])
        >>> joint_update(torch.tensor([2.0, 1.0]), torch.tensor([True, False]), fisher, damping=1e-6)
        tensor([3.0000, 0.0000])
    """
    size = _check(blocks, weight.numel(), damping)
    if kept_mask.dtype != torch.bool:
        raise TypeError(f"Argument kept_mask should be bool, but given {kept_mask.dtype}")
    if kept_mask.shape != weight.shape:
        raise ValueError(
            f"Argument kept_mask should have shape {tuple(weight.shape)}, but given {tuple(kept_mask.shape)}"
        )
    old, kept = (_cut(each.detach().reshape(1, -1), size)[0] for each in (weight, kept_mask))
    new = torch.empty_like(old)
    for first, last in _chunks(blocks):
        new[first:last] = _joint(blocks[first:last], old[first:last].double(), kept[first:last], damping)
    _check_finite(new, damping)
    return new.view(-1)[: weight.numel()].view(weight.shape)


def _joint(blocks: Tensor, old: Tensor, kept: Tensor, damping: float) -> Tensor:
    """Return the new entries of a few blocks, float64."""
    system = blocks.to(torch.float64, copy=True)
    right = torch.bmm(system, old.masked_fill(kept, 0).unsqueeze(2)).masked_fill_(~kept.unsqueeze(2), 0)
    # Removed and padded entries get the separate equation δ = 0, so that all blocks keep one size.
    system.mul_(kept.unsqueeze(1)).mul_(kept.unsqueeze(2))
    system.diagonal(dim1=1, dim2=2).add_(torch.where(kept, damping, 1.0))
    change = torch.cholesky_solve(right, _cholesky(system, damping)).squeeze(2)
    return change.add_(old).masked_fill_(~kept, 0)


def _cholesky(damped: Tensor, damping: float) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        raise ValueError(
            f"{int(failed.count_nonzero())} of {len(damped)} blocks are not positive definite with a damping of "
            f"{damping:g} on their diagonals; try a bigger one, or gather more gradients"
        )
    return factor


def _check_finite(values: Tensor, damping: float) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"The blocks' inverse with a damping of {damping:g} on the diagonals is not finite; try a bigger one, and "
            "check the gradients for NaN and infinity"
        )


def _check(blocks: Tensor, d: int, damping: float = 1.0) -> int:
    """Return the block size."""
    size = blocks.shape[-1]
    if blocks.dim() != 3 or blocks.shape[1] != size or size == 0 or blocks.shape[0] != math.ceil(d / size):
        raise ValueError(f"Argument blocks should have the shape (ceil({d}/B), B, B), but given {tuple(blocks.shape)}")
    if isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 < damping < math.inf:
        raise ValueError(f"Argument damping should be a finite number above 0, but given {damping!r}")
    return size


def _cut(rows: Tensor, size: int) -> Tensor:
    """Return ``rows`` (k, d) as (k, blocks, size), padded with zeros to a multiple of ``size``."""
    short = -rows.shape[1] % size
    padded = torch.cat([rows, rows.new_zeros(rows.shape[0], short)], dim=1) if short else rows
    return padded.reshape(len(rows), padded.shape[1] // size, size)


def _chunks(blocks: Tensor) -> list[tuple[int, int]]:
    step = max(1, _CHUNK // (8 * blocks.shape[1] ** 2))
    return [(first, min(first + step, len(blocks))) for first in range(0, len(blocks), step)]


def _at_least_float(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class OBS(Informed):
    r"""Optimal Brain Surgeon with a block-diagonal WoodFisher inverse: :math:`s_i = w_i^2 / (2 [F^{-1}]_{ii})`.

    :math:`F` is the empirical Fisher, of per-sample gradients with ``data`` and of batch gradients in training. The
    score assumes that the other weights of the block are adjusted, which ``repair.OBS()`` does. Memory: ``block``
    numbers per weight; time: one pass over them for every fourth gradient.

    Args:
        block: weights per block, consecutive in the flattened parameter.
        damping: value added to the diagonal of F.

    Raises:
        TypeError, ValueError: ``block`` is not an int of at least 1, or ``damping`` not a finite number above 0.
        ValueError: (from an update) the damped Fisher is singular to working precision.

    References:
        Hassibi, Stork, "Second order derivatives for network pruning", 1993; Singh, Alistarh, "WoodFisher", 2020,
        arXiv 2004.14340; Kurtic et al., "The optimal BERT surgeon", 2022, arXiv 2203.07259.
    """

    block: int = 50
    damping: float = 1e-6

    def __post_init__(self) -> None:
        check_positive("block", self.block, whole=True)
        check_positive("damping", self.damping)

    @property
    def need(self) -> FisherBlocks:
        return FisherBlocks(self.block)

    def formula(self, weight: Tensor, evidence: Fisher) -> Tensor:
        # (S/m + λ)⁻¹ = m (S + mλ)⁻¹: dividing the scores saves a second copy of the blocks.
        sums = evidence.sums.to(weight.device)
        return saliencies(weight, sums, self.damping * evidence.number) / evidence.number
