"""SparseGPT's column sweep: prunes columns from left to right and updates the columns that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ignite_prune.saliency.sparsegpt import column_scores, dead_columns, inverse_factor

Chooser = Callable[[int, Tensor, Tensor], Tensor]
"""``(start, weight, diagonal) -> mask``: the first column, the weights (rows, b) updated so far, and U's diagonal (b,),
infinite for dead columns; returns a bool mask (rows, b), True = kept."""


def sweep(
    weight2d: Tensor,
    hessian: Tensor,
    *,
    damping: float,
    block: int,
    mask: Tensor | None = None,
    choose: Chooser | None = None,
    group: int | None = None,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Prune a matrix and update the remaining weights, column by column.

    With U the upper Cholesky factor of the inverse Hessian, column i has the error :math:`e = w_i / U_{ii}` in pruned
    entries and 0 elsewhere, and the columns after it become :math:`W_{:,j} - e\, U_{ij}`. Columns beyond the current
    block are updated once per block.

    Args:
        weight2d: ``(rows, n)``; not changed.
        hessian: ``(n, n)``; see :func:`ignite_prune.saliency.sparsegpt.inverse_factor`.
        damping: damping relative to the mean of the Hessian's diagonal.
        block: number of columns updated together; with a given mask it only affects the speed.
        mask: bool, of the weight's shape, True = kept; weights are updated for this mask.
        choose: selects the mask instead, on the weights updated so far, e.g. :func:`by_count` or :func:`by_group`.
        group: number of columns per call of ``choose``; None is a whole block. ``block`` is rounded up to a multiple.
        overwrite: whether ``hessian`` may be overwritten; the results are stored column by column then, as a copy would
            take more memory.

    Returns:
        The new weight, in the dtype of ``weight2d``, and the mask. Pruned entries are exactly 0.0; kept entries of a
        dead column are not changed.

    Raises:
        TypeError: not exactly one of ``mask`` and ``choose`` is given, or the mask is not bool.
        ValueError: the shapes do not match, ``block`` or ``group`` is below 1, the Hessian has no finite inverse, or
            the weights are not finite.

    Example:
        >>> w, h = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> sweep(w, h, damping=0.0, block=2, choose=by_count([1], block=2))
        (tensor([[0.0000, 2.5000]]), tensor([[False,  True]]))
    """
    if (mask is None) == (choose is None):
        raise TypeError("Exactly one of the arguments mask and choose should be given")
    _check_shapes(weight2d, hessian, mask)
    _check_widths(block=block, group=block if group is None else group)
    dtype = torch.promote_types(torch.promote_types(weight2d.dtype, hessian.dtype), torch.float32)
    dead = dead_columns(hessian)
    factor = inverse_factor(hessian, damping, overwrite).to(dtype)
    diagonal = factor.diagonal().clone()
    divisors = diagonal.masked_fill(dead, torch.inf)  # dead columns score 0
    columns = weight2d.detach().t().to(dtype, copy=True, memory_format=torch.contiguous_format)  # (n, rows)
    kept = torch.ones_like(columns, dtype=torch.bool) if mask is None else mask.t().contiguous()
    step = block if group is None else -(-block // group) * group
    for start in range(0, len(columns), step):
        stop = min(start + step, len(columns))
        errors = torch.empty_like(columns[start:stop])
        for first in range(start, stop, group or step):
            last = min(first + (group or step), stop)
            if choose is not None:
                kept[first:last] = choose(first, columns[first:last].t(), divisors[first:last]).t()
            share = (~kept[first:last]).to(dtype).div_(diagonal[first:last, None])
            for i in range(first, last):
                error = torch.mul(columns[i], share[i - first], out=errors[i - start])
                columns[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
        columns[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    if columns.numel() and not all(map(math.isfinite, columns.aminmax())):
        raise ValueError(f"The weights, updated at damping={damping:g}, are not finite; were they before?")
    columns.masked_fill_(~kept, 0)
    new, mask = columns.t().to(weight2d.dtype), kept.t()
    return (new, mask) if overwrite else (new.contiguous(), mask.contiguous())


def by_count(counts: Sequence[int], block: int, before: Tensor | None = None) -> Chooser:
    """Return a chooser that prunes exactly the ``counts[b]`` smallest scores of block b.

    Of equal scores the one with the lower flat index in the block is kept.

    Args:
        counts: number of pruned entries of each block, including those pruned in ``before``; see :func:`block_counts`.
        block: columns per block, as given to :func:`sweep`.
        before: the earlier mask, bool ``(rows, n)``; its pruned entries are pruned first.

    Raises:
        ValueError: (when called) a block has fewer entries than its count, or more of them are pruned in ``before``.
    """

    def choose(start: int, weight: Tensor, diagonal: Tensor) -> Tensor:
        count, gone = counts[start // block], None
        scores = column_scores(weight, diagonal).contiguous().view(-1)
        if before is not None:
            gone = ~before[:, start : start + weight.shape[1]].reshape(-1)
            scores.masked_fill_(gone, -1)
        least = 0 if gone is None else int(gone.count_nonzero())
        if not least <= count <= scores.numel():
            raise ValueError(
                f"The block at column {start} can have {least} to {scores.numel()} pruned, but given a count of {count}"
            )
        return _all_but_least(scores, count).view(weight.shape)

    return choose


def by_group(keep: int, before: Tensor | None = None) -> Chooser:
    """Return a chooser for N:M sparsity that keeps the ``keep`` best entries of a group in each row.

    Of equal scores the earlier entry is kept. Use it as ``sweep(..., choose=by_group(2), group=4)``.

    Args:
        keep: number of kept entries; a group with fewer left keeps those.
        before: the earlier mask, bool ``(rows, n)``; its pruned entries stay pruned.
    """

    def choose(start: int, weight: Tensor, diagonal: Tensor) -> Tensor:
        scores = column_scores(weight, diagonal).contiguous()
        alive = None if before is None else before[:, start : start + weight.shape[1]]
        if alive is not None:
            scores.masked_fill_(~alive, -1)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :keep]
        kept = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device).scatter_(1, best, True)
        return kept if alive is None else kept.logical_and_(alive)

    return choose


def block_counts(pruned: int, shape: tuple[int, int], block: int, before: Tensor | None = None) -> list[int]:
    """Divide ``pruned`` entries of a ``(rows, n)`` matrix over its blocks, in proportion to their remaining entries.

    Args:
        pruned: total number of pruned entries, including those pruned in ``before``; at least their number is used.
        shape: rows and columns.
        block: columns per block.
        before: the earlier mask, bool ``(rows, n)``, True = kept.

    Returns:
        Pruned entries of each block, which add up exactly.

    Example:
        >>> block_counts(7, (2, 5), block=2)
        [2, 3, 2]
    """
    rows, n = shape
    sizes = [rows * min(block, n - start) for start in range(0, n, block)]
    living = sizes if before is None else [int(part.count_nonzero()) for part in torch.split(before, block, dim=1)]
    total = sum(living)
    more = max(pruned - (rows * n - total), 0)
    counts, seen, given = [], 0, 0
    for size, alive in zip(sizes, living):
        seen += alive
        cumulative = more * seen // max(total, 1)
        counts.append(size - alive + cumulative - given)
        given = cumulative
    return counts


def _all_but_least(scores: Tensor, count: int) -> Tensor:
    """Return a mask without the ``count`` smallest scores; of equal ones the last are pruned."""
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count).values
    kept = scores >= threshold
    ties = (scores == threshold).nonzero().squeeze(1)
    left = count - (scores.numel() - int(kept.count_nonzero()))
    kept[ties[ties.numel() - left :]] = False
    return kept


def _check_shapes(weight: Tensor, hessian: Tensor, mask: Tensor | None) -> None:
    if weight.dim() != 2 or tuple(hessian.shape) != (weight.shape[1],) * 2:
        raise ValueError(
            "Arguments weight2d and hessian should have the shapes (rows, n) and (n, n), but given "
            f"{tuple(weight.shape)} and {tuple(hessian.shape)}"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"Argument mask should be bool, but given {mask.dtype}")
    if mask is not None and mask.shape != weight.shape:
        raise ValueError(f"Argument mask should have the shape {tuple(weight.shape)}, but given {tuple(mask.shape)}")


def _check_widths(**widths: int) -> None:
    for name, value in widths.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"Argument {name} should be an int of at least 1, but given {value!r}")
