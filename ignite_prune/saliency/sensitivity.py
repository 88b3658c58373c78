"""Sensitivity: absolute gradient of the loss with respect to a unit's activation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import Activations


def gradient_size(z: Tensor, gradient: Tensor | None) -> Tensor:
    r"""Return :math:`\sum |\partial L/\partial z|` over positions."""
    assert gradient is not None
    return gradient.abs().sum(-1)


@dataclass(frozen=True)
class Sensitivity(Informed):
    r"""Absolute gradient of the activation, :math:`s = E_x \sum |\partial L_x / \partial z|`, summed over positions.

    :math:`L_x` is the loss of sample x alone, so the scores do not depend on the batch size if ``loss_fn`` is a mean
    over the batch. One score per unit (dim 0), for ``Channel()``.

    References:
        Mittal, Bhardwaj, Khapra, Ravindran, "Recovering from random pruning", 2018, arXiv 1812.10240 (and TorchPruner).
    """

    @property
    def need(self) -> Activations:
        return Activations(gradient_size, gradient=True, name="abs-gradient")

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence
