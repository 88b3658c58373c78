"""DSnoT (dynamic sparse no training): a mask of the same sparsity with a smaller expected error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_positive
from ignite_prune.pattern import Unstructured
from ignite_prune.repair.base import PrunedParameter, Repair, RepairContext, evidence_for
from ignite_prune.repair.swap import swap
from ignite_prune.saliency.needs import InputNorms


@dataclass(frozen=True)
class DSnoT(Repair):
    """Swaps pruned entries with kept ones, row by row, until the expected error of each output is small.

    Weights are not changed. Each row keeps its number of entries, so counts stay exact; entries pruned by earlier
    updates stay pruned. It helps if inputs have a nonzero mean (after a ReLU), and does harm otherwise. For
    ``Unstructured()`` masks on Linear and Conv layers. The evidence is shared with ``saliency.Wanda()``.

    Args:
        cycles: maximum number of swaps per row.
        threshold: expected error, in the output's unit, at which the swaps of a row end.

    Raises:
        TypeError, ValueError: ``cycles`` is not an int of at least 1, or ``threshold`` not a finite number above 0.
        ValueError: (from an update) the pattern is not ``Unstructured()``.

    References:
        Zhang et al., "Dynamic sparse no training", 2024, arXiv 2310.08915.
    """

    by_layer: ClassVar[bool] = True
    cycles: int = 50
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        check_positive("cycles", self.cycles, whole=True)
        check_positive("threshold", self.threshold)

    @property
    def needs(self) -> tuple[InputNorms]:
        return (InputNorms(),)

    def __call__(self, context: RepairContext, pruned: Sequence[PrunedParameter]) -> None:
        for parameter in pruned:
            if not isinstance(parameter.pattern, Unstructured):
                raise ValueError(
                    f"repair.DSnoT() swaps single entries, but {parameter.name!r} is pruned by {parameter.pattern}"
                )
            sums = evidence_for(context, self, parameter.name)
            context.masks[parameter.name] = self._swapped(context, parameter.name, sums)

    def _swapped(self, context: RepairContext, name: str, sums: Tensor) -> Tensor:
        weight, mask, before = context.weight(name), context.masks[name], context.before[name]
        transposed = sums.ndim == 3 and sums.shape[2] == 1 and sums.shape[1] > 1

        def rows(tensor: Tensor) -> Tensor:
            return (tensor.t() if transposed else tensor.flatten(1)).contiguous()

        allowed = torch.ones_like(mask) if before is None else before
        statistics = [rows(each) for each in sums]  # one row for all outputs, or one per group of a convolution
        groups = len(statistics[0])
        parts = zip(*(rows(each).chunk(groups) for each in (weight, mask, allowed)), *statistics)
        found = torch.cat([self._swap(*part) for part in parts])
        return (found.t() if transposed else found.view(weight.shape)).contiguous()

    def _swap(
        self, weight: Tensor, mask: Tensor, allowed: Tensor, total: Tensor, squares: Tensor, number: Tensor
    ) -> Tensor:
        mean = total / number.clamp(min=1)
        variance = (squares / number.clamp(min=1) - mean.square()).clamp(min=1e-12)
        norm = squares.sqrt()
        return swap(weight, mask, mean, variance, norm, cycles=self.cycles, threshold=self.threshold, allowed=allowed)
