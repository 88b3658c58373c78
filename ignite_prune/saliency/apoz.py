"""APoZ: the fraction of positions at which a unit is active."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import Activations


def active_share(z: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the fraction of positions at which a unit is above 0, ``(samples, units)``."""
    return (z > 0).to(torch.float64 if z.dtype == torch.float64 else torch.float32).mean(-1)


@dataclass(frozen=True)
class APoZ(Informed):
    r"""The fraction of positions at which a unit is active, 1 − APoZ (average percentage of zeros), over all samples.

    One score per unit (dim 0), for ``Channel()``. Measured on the output of the BatchNorm and activation that follow
    the layer in the forward pass, functional ones included. Memory: one number per unit.

    References:
        Hu, Peng, Tai, Tang, "Network trimming", 2016, arXiv 1607.03250.
    """

    @property
    def need(self) -> Activations:
        return Activations(active_share, name="active-share")

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence
