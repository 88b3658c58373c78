"""SparseGPT's update: column after column, those to the right making up for what goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune import saliency
from ignite_prune._utils.arguments import check_positive
from ignite_prune.pattern import NofM, Unstructured
from ignite_prune.repair.base import PrunedParameter, Repair, RepairContext, evidence_for
from ignite_prune.repair.sparsegpt_sweep import block_counts, by_count, by_group, sweep
from ignite_prune.saliency.needs import InputMoments, Moments


@dataclass(frozen=True)
class SparseGPT(Repair):
    """Sweep over a layer's columns, each error spread over the columns not yet reached.

    Where ``saliency.SparseGPT()`` chose the mask, the mask is chosen anew, block by block (for ``NofM`` group by group)
    on the weights as updated so far, as the paper does; how many go stays the same. Any other mask is kept as it is.
    For Linear and Conv layers, whose inputs are unfolded. Evidence and memory are those of ``saliency.SparseGPT``.

    Args:
        block: columns that are updated, and chosen, together.
        damping: times the mean of the Hessian's diagonal.

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
    def needs(self) -> tuple[InputMoments]:
        return (InputMoments(),)

    def __call__(self, patient: RepairContext, cuts: Sequence[PrunedParameter]) -> None:
        for cut in cuts:
            moments: Moments = evidence_for(patient, self, cut.name)
            weight, mask, before = patient.weight(cut.name), patient.masks[cut.name], patient.before[cut.name]
            form = _Matrix(weight, moments.transposed, channels_last=isinstance(cut.pattern, NofM))
            parts = zip(
                form.rows(weight).chunk(len(moments.sums)),
                form.rows(mask).chunk(len(moments.sums)),
                [None] * len(moments.sums) if before is None else form.rows(before).chunk(len(moments.sums)),
                moments.sums,
            )
            swept = [
                self._sweep(part, kept, earlier, form.hessian(sums.to(weight.device) * moments.scale), cut)
                for part, kept, earlier, sums in parts
            ]
            patient.values[cut.name] = form.back(torch.cat([new for new, _ in swept]))
            patient.masks[cut.name] = form.back(torch.cat([kept for _, kept in swept]))

    def _sweep(
        self, weight: Tensor, mask: Tensor, before: Tensor | None, hessian: Tensor, cut: PrunedParameter
    ) -> tuple[Tensor, Tensor]:
        pattern, rows = cut.pattern, tuple(weight.shape)
        own = isinstance(cut.saliency, saliency.SparseGPT)
        if own and isinstance(pattern, Unstructured):
            counts = block_counts(int((~mask).sum()), (rows[0], rows[1]), self.block, before)
            choose = by_count(counts, self.block, before)
            return sweep(weight, hessian, damping=self.damping, block=self.block, choose=choose)
        if own and isinstance(pattern, NofM) and pattern.dim == 1 and _all_done(mask, pattern):
            choose = by_group(pattern.keep, before)
            return sweep(weight, hessian, damping=self.damping, block=self.block, choose=choose, group=pattern.of)
        return sweep(weight, hessian, damping=self.damping, block=self.block, mask=mask)


def _all_done(mask: Tensor, pattern: NofM) -> bool:
    if mask.shape[1] % pattern.of:
        return False
    return bool((mask.reshape(len(mask), -1, pattern.of).sum(-1) <= pattern.keep).all())


class _Matrix:
    """A weight as a matrix ``(out, inputs)``, and the way back.

    Args:
        like: the weight.
        transposed: its outputs lie along dim 1.
        channels_last: order a convolution's inputs ``(*kernel, channels)``, as groups along the channels need it.
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
            return matrix.t().contiguous()
        if not self._last:
            return matrix.view(self._shape)
        out, channels, *kernel = self._shape
        return matrix.view(out, *kernel, channels).movedim(-1, 1).contiguous()

    def hessian(self, hessian: Tensor) -> Tensor:
        if not self._last:
            return hessian
        channels = self._shape[1]
        order = torch.arange(len(hessian), device=hessian.device).view(channels, -1).t().reshape(-1)
        return hessian[order][:, order]
