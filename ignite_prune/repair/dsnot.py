"""Dynamic sparse no training: another mask, as sparse, with less expected error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_positive
from ignite_prune.pattern import Unstructured
from ignite_prune.repair.base import PrunedParameter, Repair, RepairContext, evidence_for
from ignite_prune.repair.swap import swap
from ignite_prune.saliency.needs import InputNorms


@dataclass(frozen=True)
class DSnoT(Repair):
    """Swap pruned entries for kept ones, row by row, until each output's expected error is small.

    No weight is changed. Rows keep their numbers, so the counts stay exact; entries of earlier updates never come back.
    It helps where inputs have means (after a ReLU); where they have none it does harm. For ``Unstructured()`` masks on
    Linear and Conv layers. Evidence is that of ``saliency.Wanda``, shared with it.

    Args:
        cycles: swaps a row at the most.
        threshold: of the expected error, in the output's unit, at which a row is left.

    Raises:
        TypeError, ValueError: ``cycles`` is not an int of at least 1, or ``threshold`` not a finite number above 0.
        ValueError: (from an update) another pattern.

    References:
        Zhang et al., "Dynamic sparse no training", 2024, arXiv 2310.08915.
    """

    cycles: int = 50
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        check_positive("cycles", self.cycles, whole=True)
        check_positive("threshold", self.threshold)

    @property
    def needs(self) -> tuple[InputNorms]:
        return (InputNorms(),)

    def __call__(self, patient: RepairContext, cuts: Sequence[PrunedParameter]) -> None:
        for cut in cuts:
            if not isinstance(cut.pattern, Unstructured):
                raise ValueError(f"repair.DSnoT() swaps single entries, but {cut.name!r} is pruned by {cut.pattern}")
            sums = evidence_for(patient, self, cut.name)
            patient.masks[cut.name] = self._swapped(patient, cut.name, sums)

    def _swapped(self, patient: RepairContext, name: str, sums: Tensor) -> Tensor:
        weight, mask, before = patient.weight(name), patient.masks[name], patient.before[name]
        transposed = sums.ndim == 3 and sums.shape[2] == 1 and sums.shape[1] > 1

        def rows(tensor: Tensor) -> Tensor:
            return (tensor.t() if transposed else tensor.flatten(1)).contiguous()

        allowed = torch.ones_like(mask) if before is None else before
        statistics = [rows(each) for each in sums]  # of one row for all, or in a grouped convolution of each
        alike = len(statistics[0])
        parts = zip(*(rows(each).chunk(alike) for each in (weight, mask, allowed)), *statistics)
        found = torch.cat([self._swap(*part) for part in parts])
        return (found.t() if transposed else found.view(weight.shape)).contiguous()

    def _swap(
        self, weight: Tensor, mask: Tensor, allowed: Tensor, total: Tensor, squares: Tensor, number: Tensor
    ) -> Tensor:
        mean = total / number.clamp(min=1)
        variance = (squares / number.clamp(min=1) - mean.square()).clamp(min=1e-12)
        norm = squares.sqrt()
        return swap(weight, mask, mean, variance, norm, cycles=self.cycles, threshold=self.threshold, allowed=allowed)
