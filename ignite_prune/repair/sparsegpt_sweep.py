"""SparseGPT's column sweep: prune from left to right, and let the columns not yet reached make up for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ignite_prune.saliency.sparsegpt import column_scores, dead_columns, inverse_factor

Chooser = Callable[[int, Tensor, Tensor], Tensor]
"""Takes the first column, the weights (rows, b) as updated so far and U's diagonal (b,), infinite where the column is
dead; returns the bool mask (rows, b), True = kept."""


def sweep(
    weight2d: Tensor,
    hessian: Tensor,
    *,
    damping: float,
    block: int,
    mask: Tensor | None = None,
    choose: Chooser | None = None,
    group: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Prune a matrix and update what stays, one column after another.

    With U the upper Cholesky factor of the inverse Hessian, column i has the errors :math:`e = w_i / U_{ii}` where it
    is pruned and 0 elsewhere, and the columns after it become :math:`W_{:,j} - e\, U_{ij}`. Columns beyond the block
    are updated once a block.

    Args:
        weight2d: ``(rows, n)``; not changed.
        hessian: ``(n, n)``; see :func:`ignite_prune.saliency.sparsegpt.inverse_factor`.
        damping: relative to the mean of the Hessian's diagonal.
        block: columns updated together; with a mask given it alters the speed alone.
        mask: bool, of the weight's shape, True = kept: only the update is made.
        choose: picks the mask instead, on the weights as updated so far, e.g. :func:`by_count`, :func:`by_group`.
        group: columns that ``choose`` is asked for at a time, a whole block if None; ``block`` is raised to a multiple.

    Returns:
        The new weight, in its type, and the mask. Pruned entries are exactly 0.0; a dead column keeps its kept weights.

    Raises:
        TypeError: not just one of ``mask`` and ``choose``, or a mask that is not bool.
        ValueError: shapes that do not fit, ``block`` or ``group`` below 1, a Hessian without an inverse, or weights
            that are not finite.

    Example:
        >>> w, h = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> sweep(w, h, damping=0.0, block=2, choose=by_count([1], block=2))
        (tensor([[0.0000, 2.5000]]), tensor([[False,  True]]))
    """
    if (mask is None) == (choose is None):
        raise TypeError("Just one of the arguments mask and choose should be given")
    _check_shapes(weight2d, hessian, mask)
    _check_widths(block=block, group=block if group is None else group)
    dtype = torch.promote_types(torch.promote_types(weight2d.dtype, hessian.dtype), torch.float32)
    factor = inverse_factor(hessian, damping).to(dtype)
    diagonal = factor.diagonal().clone()
    worth = diagonal.masked_fill(dead_columns(hessian), torch.inf)
    columns = weight2d.detach().t().to(dtype, copy=True, memory_format=torch.contiguous_format)  # (n, rows)
    kept = torch.ones_like(columns, dtype=torch.bool) if mask is None else mask.t().contiguous()
    step = block if group is None else -(-block // group) * group
    for start in range(0, len(columns), step):
        stop = min(start + step, len(columns))
        errors = torch.empty_like(columns[start:stop])
        for first in range(start, stop, group or step):
            last = min(first + (group or step), stop)
            if choose is not None:
                kept[first:last] = choose(first, columns[first:last].t(), worth[first:last]).t()
            share = (~kept[first:last]).to(dtype).div_(diagonal[first:last, None])
            for i in range(first, last):
                error = torch.mul(columns[i], share[i - first], out=errors[i - start])
                columns[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
        columns[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    if not bool(torch.isfinite(columns).all()):
        raise ValueError(f"The weights, updated at damping={damping:g}, are not finite; were they before?")
    columns.masked_fill_(~kept, 0)
    return columns.t().to(weight2d.dtype).contiguous(), kept.t().contiguous()


def by_count(counts: Sequence[int], block: int, before: Tensor | None = None) -> Chooser:
    """Return a chooser that prunes exactly the ``counts[b]`` least scores of block b.

    Args:
        counts: pruned entries of each block, those pruned ``before`` included; see :func:`block_counts`.
        block: columns of a block, as given to :func:`sweep`.
        before: bool ``(rows, n)``: what is pruned in it goes first. Among equals the lower flat index in the block
            stays.

    Raises:
        ValueError: when called: a block has fewer entries than its count, or more of them pruned before.
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
                f"The block at column {start} can have {least} to {scores.numel()} pruned, but {count} are asked for"
            )
        return _all_but_least(scores, count).view(weight.shape)

    return choose


def by_group(keep: int, before: Tensor | None = None) -> Chooser:
    """Return a chooser for N:M: of each row's group the ``keep`` best stay, the earlier among equals.

    Use it as ``sweep(..., choose=by_group(2), group=4)``.

    Args:
        keep: entries that stay; a group that has fewer left keeps those.
        before: bool ``(rows, n)``: what is pruned in it stays pruned.
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
    """Divide ``pruned`` entries of a ``(rows, n)`` matrix over its blocks, in proportion to what lives in each.

    Args:
        pruned: how many in all, those pruned ``before`` included; where it is fewer, those.
        shape: rows and columns.
        block: columns of a block.
        before: bool ``(rows, n)``, True = kept so far.

    Returns:
        Whole numbers that add up exactly, none below what is pruned already.

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
        due = more * seen // max(total, 1)
        counts.append(size - alive + due - given)
        given = due
    return counts


def _all_but_least(scores: Tensor, count: int) -> Tensor:
    """Return a mask without the ``count`` least; of equal ones the last go."""
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
