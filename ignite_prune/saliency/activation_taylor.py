"""ActivationTaylor: activation times gradient, summed per unit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ignite_prune._utils.arguments import check_is
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import Activations


def product_size(z: Tensor, gradient: Tensor | None) -> Tensor:
    r"""Return :math:`|\sum z \, \partial L/\partial z|` over positions."""
    assert gradient is not None
    return (z * gradient).sum(-1).abs()


def product(z: Tensor, gradient: Tensor | None) -> Tensor:
    r"""Return :math:`-\sum z \, \partial L/\partial z` over positions: the increase of the loss without the unit."""
    assert gradient is not None
    return (z * gradient).sum(-1).neg()


@dataclass(frozen=True)
class ActivationTaylor(Informed):
    r"""First-order change of the loss when a unit is removed: :math:`s = E_x |\sum z \, \partial L_x/\partial z|`.

    The sum is over positions; :math:`L_x` is the loss of sample x alone. One score per unit (dim 0), for ``Channel()``.

    Args:
        signed: use :math:`-E_x \sum z \, \partial L_x/\partial z`, which is negative if the loss would fall.

    Raises:
        TypeError: ``signed`` is not a bool.

    References:
        Molchanov, Tyree, Karras, Aila, Kautz, "Pruning convolutional neural networks for resource efficient
        inference", 2016, arXiv 1611.06440.
    """

    signed: bool = False

    def __post_init__(self) -> None:
        check_is("signed", self.signed, bool)

    @property
    def need(self) -> Activations:
        measure, name = (product, "product") if self.signed else (product_size, "abs-product")
        return Activations(measure, gradient=True, name=name)

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence
