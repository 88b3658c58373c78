"""What a unit's activation tells: measured after the normalisation and the nonlinearity that really follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ignite_prune.arguments import check_is
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import Activations, FollowingScale


def active_share(z: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the fraction of positions at which a unit is above 0, ``(samples, units)``."""
    return (z > 0).to(torch.float64 if z.dtype == torch.float64 else torch.float32).mean(-1)


def map_rank(z: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the rank of each map, ``(samples, units)``; ``z`` is ``(samples, units, height, width)``."""
    ranks: Tensor = torch.linalg.matrix_rank(z.float() if z.itemsize < 4 else z)
    return ranks.to(z.dtype)


def gradient_size(z: Tensor, gradient: Tensor | None) -> Tensor:
    r"""Return :math:`\sum |\partial L/\partial z|` over positions."""
    assert gradient is not None
    return gradient.abs().sum(-1)


def product_size(z: Tensor, gradient: Tensor | None) -> Tensor:
    r"""Return :math:`|\sum z \, \partial L/\partial z|` over positions."""
    assert gradient is not None
    return (z * gradient).sum(-1).abs()


def product(z: Tensor, gradient: Tensor | None) -> Tensor:
    r"""Return :math:`-\sum z \, \partial L/\partial z` over positions: how much the loss rises without it."""
    assert gradient is not None
    return (z * gradient).sum(-1).neg()


@dataclass(frozen=True)
class APoZ(Informed):
    r"""The fraction of positions at which a unit is active, 1 − APoZ (average percentage of zeros), over all samples.

    One score a unit (dim 0), for ``Channel()``. Measured where the data really goes after the layer: behind BatchNorm
    and activation, functional ones too. Memory: one number a unit.

    References:
        Hu, Peng, Tai, Tang, "Network trimming", 2016, arXiv 1607.03250.
    """

    @property
    def need(self) -> Activations:
        return Activations(active_share, name="active-share")

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence


@dataclass(frozen=True)
class HRank(Informed):
    r"""The mean rank of a unit's feature maps, over all samples. For convolutions over two dimensions.

    One score a unit (dim 0), for ``Channel()``. Few batches do. Time: a singular value decomposition a map.

    References:
        Lin, Ji, Wang, Zhang, Zhang, Tian, Shao, "HRank", 2020, arXiv 2002.10179.
    """

    some_layers: ClassVar[bool] = True

    @property
    def need(self) -> Activations:
        return Activations(map_rank, maps=True, name="rank")

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence


@dataclass(frozen=True)
class Sensitivity(Informed):
    r"""How strongly the loss reacts to a unit: :math:`s = E_x \sum |\partial L_x / \partial z|`, summed over positions.

    :math:`L_x` is the sample's own loss, so the scores do not depend on the batch size (of a ``loss_fn`` that is a mean
    over the batch). One score a unit (dim 0), for ``Channel()``.

    References:
        Mittal, Bhardwaj, Khapra, Ravindran, "Recovering from random pruning", 2018, arXiv 1812.10240 (and TorchPruner).
    """

    @property
    def need(self) -> Activations:
        return Activations(gradient_size, gradient=True, name="abs-gradient")

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence


@dataclass(frozen=True)
class ActivationTaylor(Informed):
    r"""The loss's change without the unit, to first order: :math:`s = E_x |\sum z \, \partial L_x/\partial z|`.

    The sum is over positions; :math:`L_x` is the sample's own loss. One score a unit (dim 0), for ``Channel()``.

    Args:
        signed: :math:`-E_x \sum z \, \partial L_x/\partial z`, which says whether the loss would rise or fall.

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
