"""HRank: the rank of a filter's feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import Activations


def map_rank(z: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the rank of each feature map, ``(samples, units)``; ``z`` is ``(samples, units, height, width)``."""
    ranks: Tensor = torch.linalg.matrix_rank(z.float() if z.itemsize < 4 else z)
    return ranks.to(z.dtype)


@dataclass(frozen=True)
class HRank(Informed):
    r"""Mean rank of a unit's feature maps over all samples, for 2-D convolutions.

    One score per unit (dim 0), for ``Channel()``. A few batches suffice. Time: one singular value decomposition per
    feature map.

    References:
        Lin, Ji, Wang, Zhang, Zhang, Tian, Shao, "HRank", 2020, arXiv 2002.10179.
    """

    some_layers: ClassVar[bool] = True

    @property
    def need(self) -> Activations:
        return Activations(map_rank, maps=True, name="rank")

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence
