"""Optimal Brain Surgeon and SparseGPT: what a weight costs when the others make up for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune.arguments import check_positive
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import Fisher, FisherBlocks, InputMoments, Moments
from ignite_prune.saliency.obs import saliencies
from ignite_prune.saliency.sparsegpt import column_scores, dead_columns, inverse_factor


@dataclass(frozen=True)
class OBS(Informed):
    r"""Optimal Brain Surgeon with a block-diagonal WoodFisher inverse: :math:`s_i = w_i^2 / (2 [F^{-1}]_{ii})`.

    :math:`F` is the empirical Fisher, over ``data`` of every sample's own gradient, in training of each step's. The
    cost assumes that the other weights of the block make up for the removed one: ``repair.OBS()`` lets them. Memory:
    ``block`` numbers a weight; time: one pass over them for every fourth gradient.

    Args:
        block: weights a block, consecutive in the flattened parameter.
        damping: added to the diagonal of F.

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


@dataclass(frozen=True)
class SparseGPT(Informed):
    r"""What a weight costs its layer's output if the columns to its right make up for it: :math:`w_{ij}^2 / U_{jj}^2`.

    :math:`U` is the upper Cholesky factor of the inverse of :math:`H = \tfrac2n \sum x x^T` over the layer's inputs (a
    convolution's unfolded), damped. With ``repair.SparseGPT()`` the mask is chosen again block by block on the weights
    as updated so far, as in the paper; the counts stay. Memory: the square of a layer's inputs.

    Args:
        block: columns a block.
        damping: times the mean of H's diagonal.

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
        rows = matrix.flatten(1).chunk(len(evidence.sums))  # a group of a convolution has inputs of its own
        scores = []
        for part, sums in zip(rows, evidence.sums):
            hessian = sums.to(weight.device) * evidence.scale
            scores.append(column_scores(part, inverse_factor(hessian, self.damping), dead_columns(hessian)))
        found = torch.cat(scores).view(matrix.shape)
        return found.t() if evidence.transposed else found
