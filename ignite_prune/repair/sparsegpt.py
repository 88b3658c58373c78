"""SparseGPT: pruning column by column, with an update of the columns to the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ignite_prune import saliency
from ignite_prune._utils.arguments import check_positive
from ignite_prune.pattern import Pattern, Unstructured
from ignite_prune.pattern.base import EntryGroups
from ignite_prune.repair.base import PrunedParameter, Repair, RepairContext, evidence_for
from ignite_prune.repair.sparsegpt_sweep import block_counts, by_count, by_group, sweep
from ignite_prune.saliency.needs import InputMoments, Moments


@dataclass(frozen=True)
class SparseGPT(Repair):
    """Processes a layer's columns from left to right; the error of each is compensated by the columns to its right.

    A mask selected by ``saliency.SparseGPT()`` is selected again, block by block (for ``NofM`` group by group), on the
    weights updated so far, as in the paper; the number of pruned weights stays the same. Other masks are kept. For
    Linear and Conv layers; the inputs of a Conv are unfolded. Evidence and memory are those of
    ``saliency.SparseGPT()``, and shared with it.

    Args:
        block: number of columns that are updated, and selected, together.
        damping: damping relative to the mean of the Hessian's diagonal.

    Raises:
        TypeError, ValueError: ``block`` is not an int of at least 1, or ``damping`` not a finite number above 0.

    References:
        Frantar, Alistarh, "SparseGPT", 2023, arXiv 2301.00774.
    """

    by_layer: ClassVar[bool] = True
    block: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_positive("block", self.block, whole=True)
        check_positive("damping", self.damping)

    @property
    def needs(self) -> tuple[InputMoments]:
        return (InputMoments(),)

    def selects(self, parameter: PrunedParameter, mask: Tensor, transposed: bool) -> bool:
        if not isinstance(parameter.saliency, saliency.SparseGPT):
            return False
        groups = parameter.pattern.entry_groups
        if groups is None:
            return isinstance(parameter.pattern, Unstructured)
        form = _Matrix(mask, transposed, channels_last=True)
        return groups.dim % mask.ndim == (0 if transposed else 1) and _all_done(form.rows(mask), groups)

    def __call__(self, context: RepairContext, pruned: Sequence[PrunedParameter]) -> None:
        for parameter in pruned:
            moments: Moments = evidence_for(context, self, parameter.name)
            weight, mask, before = (
                context.weight(parameter.name),
                context.masks[parameter.name],
                context.before[parameter.name],
            )
            form = _Matrix(weight, moments.transposed, channels_last=parameter.pattern.entry_groups is not None)
            parts = zip(
                form.rows(weight).chunk(len(moments.sums)),
                form.rows(mask).chunk(len(moments.sums)),
                [None] * len(moments.sums) if before is None else form.rows(before).chunk(len(moments.sums)),
                moments.sums,
            )
            pattern = parameter.pattern if self.selects(parameter, mask, moments.transposed) else None
            swept = []
            for part, kept, earlier, sums in parts:
                scaled = sums.mul_(moments.scale) if context.overwrite else sums * moments.scale
                swept.append(self._sweep(part, kept, earlier, form.hessian(scaled.to(weight.device)), pattern))
            context.values[parameter.name] = form.back(_joined([new for new, _ in swept]))
            context.masks[parameter.name] = form.back(_joined([kept for _, kept in swept]))

    def _sweep(
        self,
        weight: Tensor,
        mask: Tensor,
        before: Tensor | None,
        hessian: Tensor,
        pattern: Pattern | None,
    ) -> tuple[Tensor, Tensor]:
        """Sweep a matrix, whose Hessian is overwritten.

        Args:
            weight: ``(rows, n)``.
            mask: its new mask.
            before: its mask so far.
            hessian: ``(n, n)``.
            pattern: in which the mask is selected again; None: it is not.
        """
        how: dict[str, Any] = {"damping": self.damping, "block": self.block, "overwrite": True}
        if pattern is None:
            return sweep(weight, hessian, mask=mask, **how)
        groups = pattern.entry_groups
        if groups is not None:
            return sweep(weight, hessian, choose=by_group(groups.keep, before), group=groups.of, **how)
        counts = block_counts(int((~mask).sum()), (weight.shape[0], weight.shape[1]), self.block, before)
        return sweep(weight, hessian, choose=by_count(counts, self.block, before), **how)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _all_done(mask: Tensor, groups: EntryGroups) -> bool:
    if mask.shape[1] % groups.of:
        return False
    return bool((mask.reshape(len(mask), -1, groups.of).sum(-1) <= groups.keep).all())


class _Matrix:
    """Conversion between a weight and a matrix ``(out, inputs)``.

    Args:
        like: the weight.
        transposed: whether dim 1 of the weight is the output dimension.
        channels_last: order the inputs of a convolution as ``(*kernel, channels)``, so that groups along the channels
            are consecutive.
    """

    def __init__(self, like: Tensor, transposed: bool, channels_last: bool) -> None:
        self._shape, self._transposed = like.shape, transposed
        self._last = channels_last and like.ndim > 2

    def rows(self, tensor: Tensor) -> Tensor:
        if self._transposed:
            return tensor.t()
        return (tensor.movedim(1, -1) if self._last else tensor).flatten(1)

    def back(self, matrix: Tensor) -> Tensor:
        if self._transposed:
            return matrix.t()
        if not self._last:
            return matrix.reshape(self._shape)
        out, channels, *kernel = self._shape
        return matrix.reshape(out, *kernel, channels).movedim(-1, 1)

    def hessian(self, hessian: Tensor) -> Tensor:
        if not self._last:
            return hessian
        channels = self._shape[1]
        order = torch.arange(len(hessian), device=hessian.device).view(channels, -1).t().reshape(-1)
        return hessian[order][:, order]
