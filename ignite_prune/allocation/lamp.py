"""LAMP: layer-adaptive magnitude, a global ranking of scores normalised within each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ignite_prune._utils.score_source import source_of
from ignite_prune._utils.sparsity import kept
from ignite_prune._utils.tail_shares import TailShares, descending
from ignite_prune.allocation.base import Allocation, Layer, Pool, once


@dataclass(frozen=True)
class LAMP(Allocation):
    r"""One ranking over all parameters by :math:`s_u^2 / \sum_{v \ge u} s_v^2`, with units sorted within their layer.

    The largest unit of every layer scores 1, so no layer is emptied while others have units left. There are no
    hyperparameters. With ``saliency.Magnitude()`` this is the paper's score.

    Example:
        >>> import torch
        >>> lamp_scores(torch.tensor([1.0, 2.0, 3.0])) * torch.tensor([14, 13, 1])
        tensor([1., 4., 1.], dtype=torch.float64)

    References:
        Lee, Park, Mo, Ahn, Shin, "Layer-adaptive sparsity for the magnitude-based pruning", 2021, arXiv 2010.07611.
    """

    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        ranked = tuple(replace(layer, scores=_normalised(layer)) for layer in layers)
        return [Pool(ranked, kept(sum(layer.units for layer in layers), sparsity))]


def _normalised(layer: Layer) -> TailShares:
    scores = source_of(layer.scores)
    return TailShares(once(lambda: lamp_scores(scores(), layer.alive)), scores.shape, scores.device, scores)


def lamp_scores(scores: Tensor, alive: Tensor | None = None) -> Tensor:
    """Return the LAMP score of every unit, float64, in the shape of ``scores``; units not ``alive`` count as 0."""
    if bool(((scores < 0) if alive is None else (scores < 0) & alive).any()):
        raise ValueError("LAMP needs scores of at least 0, as it squares them, but some are negative")
    scores = scores if alive is None else scores.masked_fill(~alive, 0)
    ordered, order = descending(scores.flatten())  # the earlier of equal units has the larger score
    squares = ordered.double().square()
    shares = squares / squares.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.empty_like(shares).scatter_(0, order, shares).view(scores.shape)
