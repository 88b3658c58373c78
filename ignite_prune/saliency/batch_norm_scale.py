"""BatchNormScale: the scale of the BatchNorm that follows a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import FollowingScale


@dataclass(frozen=True)
class BatchNormScale(Informed):
    r"""The size of the scale that BatchNorm gives a unit, :math:`|\gamma|`: network slimming.

    Which BatchNorm follows which layer is seen in the flow of a batch. One score a unit (dim 0), for ``Channel()``; an
    L1 penalty on the scales in training makes it tell.

    References:
        Liu, Li, Shen, Huang, Yan, Zhang, "Learning efficient convolutional networks through network slimming", 2017,
        arXiv 1708.06519.
    """

    some_layers: ClassVar[bool] = True

    @property
    def need(self) -> FollowingScale:
        return FollowingScale()

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence.abs()
