"""LAMP: layer-adaptive magnitude, a global ranking of scores normalised within each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ignite_prune._utils.sparsity import kept
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
        ranked = tuple(replace(layer, scores=once(_normalised(layer))) for layer in layers)  # sorting is expensive
        return [Pool(ranked, kept(sum(layer.units for layer in layers), sparsity))]


def _normalised(layer: Layer) -> Callable[[], Tensor]:
    return lambda: lamp_scores(layer.scores(), layer.alive)


def lamp_scores(scores: Tensor, alive: Tensor | None = None) -> Tensor:
    """Return the LAMP score of every unit, float64, in the shape of ``scores``; units not ``alive`` count as 0."""
    if bool(((scores < 0) if alive is None else (scores < 0) & alive).any()):
        raise ValueError("LAMP needs scores of at least 0, as it squares them, but some are negative")
    scores = scores if alive is None else scores.masked_fill(~alive, 0)
    ordered, order = _descending(scores.flatten())
    squares = ordered.double().square()
    shares = squares / squares.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.empty_like(shares).scatter_(0, order, shares).view(scores.shape)


def _descending(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values of at least 0 in descending order, and where each was; of equal ones the first comes first.

    The earlier of equal units so has the smaller denominator, and the larger score. Bits of positive numbers have the
    order of the numbers, and integers are sorted in ascending order by their digits, six times as fast.
    """
    if values.itemsize > 4:
        return values.sort(descending=True, stable=True)
    keys, order = values.float().add(0.0).view(torch.int32).neg_().sort(stable=True)  # 0.0 added to -0.0 is 0.0
    return keys.neg_().view(torch.float32), order
