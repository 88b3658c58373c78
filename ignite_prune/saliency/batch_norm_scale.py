"""BatchNormScale: the scale of the BatchNorm that follows a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import FollowingScale


@dataclass(frozen=True)
class BatchNormScale(Informed):
    r"""The absolute scale that the following BatchNorm gives a unit, :math:`|\gamma|` (network slimming).

    The BatchNorm that follows a layer is found in a forward pass; layers without one are left out, with a warning. One
    score per unit, for ``Channel()``. Works best after training with an L1 penalty on the scales.

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
