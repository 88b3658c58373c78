"""OBS: the joint weight update of Optimal Brain Surgeon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ignite_prune._utils.arguments import check_positive
from ignite_prune.repair.base import PrunedParameter, Repair, RepairContext, evidence_for
from ignite_prune.saliency.needs import Fisher, FisherBlocks
from ignite_prune.saliency.obs import joint_update


@dataclass(frozen=True)
class OBS(Repair):
    r"""Adjusts the kept weights of each block to compensate for all removed ones jointly.

    It minimises :math:`\tfrac12 \delta^T (F + \lambda I)\, \delta` subject to every removed weight becoming 0:
    :math:`\delta_K = F_{KK}^{-1} F_{KQ} w_Q`. Published implementations sum the updates of single removals, which
    neither makes the removed weights 0 nor minimises the loss. Evidence and memory are those of ``saliency.OBS()``, and
    shared with it.

    Args:
        block: weights per block.
        damping: :math:`\lambda`, added to the diagonal.

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

    def __call__(self, context: RepairContext, pruned: Sequence[PrunedParameter]) -> None:
        for parameter in pruned:
            fisher: Fisher = evidence_for(context, self, parameter.name)
            weight, mask = context.weight(parameter.name), context.masks[parameter.name]
            sums = fisher.sums.to(weight.device)
            # S + mλ has the same solution as S/m + λ, and needs no copy of the sums.
            context.values[parameter.name] = joint_update(weight, mask, sums, self.damping * fisher.number)
