"""Optimal Brain Surgeon's update, joint for all that goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ignite_prune._utils.arguments import check_positive
from ignite_prune.repair.base import PrunedParameter, Repair, RepairContext, evidence_for
from ignite_prune.saliency.needs import Fisher, FisherBlocks
from ignite_prune.saliency.obs import joint_update


@dataclass(frozen=True)
class OBS(Repair):
    r"""Let each block's kept weights make up for all removed ones at once.

    It minimises :math:`\tfrac12 \delta^T (F + \lambda I)\, \delta` with every removed weight landing on 0:
    :math:`\delta_K = F_{KK}^{-1} F_{KQ} w_Q`. Published programs add up the updates of single removals instead, which
    neither lands on 0 nor lowers the loss. Evidence and memory are those of ``saliency.OBS``, shared with it.

    Args:
        block: weights a block.
        damping: :math:`\lambda`.

    Raises:
        TypeError, ValueError: ``block`` is not an int of at least 1, or ``damping`` not a finite number above 0.

    References:
        Hassibi, Stork, 1993; Singh, Alistarh, "WoodFisher", 2020, arXiv 2004.14340.
    """

    block: int = 50
    damping: float = 1e-6

    def __post_init__(self) -> None:
        check_positive("block", self.block, whole=True)
        check_positive("damping", self.damping)

    @property
    def needs(self) -> tuple[FisherBlocks]:
        return (FisherBlocks(self.block),)

    def __call__(self, patient: RepairContext, cuts: Sequence[PrunedParameter]) -> None:
        for cut in cuts:
            fisher: Fisher = evidence_for(patient, self, cut.name)
            weight, mask = patient.weight(cut.name), patient.masks[cut.name]
            sums = fisher.sums.to(weight.device)
            # The solution is the same for S + mλ as for S/m + λ.
            patient.values[cut.name] = joint_update(weight, mask, sums, self.damping * fisher.number)
