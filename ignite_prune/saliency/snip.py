"""SNIP: connection sensitivity, at initialisation or as a running sum in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_is
from ignite_prune.saliency.base import Bound, Informed, Saliency
from ignite_prune.saliency.gradient import add_product, add_product_size
from ignite_prune.saliency.needs import Gradients, Memory


@dataclass(frozen=True)
class SNIP(Informed):
    r"""Connection sensitivity, :math:`s = |g \odot w| / \sum |g \odot w|`, normalised over all parameters of the group.

    Made for a network at initialisation: one update, before training, on one or a few batches, whose gradients are
    summed. With ``data=`` the current weights are used; in training the product of each step is added. Memory: one
    number per entry.

    Args:
        anytime: allow it on a network that is already pruned.

    Raises:
        TypeError: ``anytime`` is not a bool.
        ValueError: (from an update) the network is already pruned and ``anytime`` is not set.

    References:
        Lee, Ajanthan, Torr, "SNIP: single-shot network pruning based on connection sensitivity", 2018,
        arXiv 1810.02340.
    """

    anytime: bool = False
    at_init: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_is("anytime", self.anytime, bool)
        object.__setattr__(self, "once", not self.anytime)

    @property
    def need(self) -> Gradients:
        return Gradients(add_product, name="product")

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence.abs()

    def bind(self, found: Mapping[str, Any], reasons: Mapping[str, str] = MappingProxyType({})) -> Saliency:
        total = sum(float(evidence.abs().sum(dtype=torch.float64)) for evidence in found.values())
        return Bound(self, found, reasons, scale=1 / total if total > 0 else 1.0)


@dataclass(frozen=True)
class SNIPMomentum(Informed):
    r"""Running sum of connection sensitivity in training, with decay: :math:`s \leftarrow d s + |g \odot w|`.

    Memory: one number per entry; time: two passes per step.

    Args:
        decay: :math:`d`, in (0, 1].

    Raises:
        ValueError: ``decay`` outside (0, 1].

    References:
        Intel Neural Compressor's ``snip_momentum`` criterion.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        Memory(self.decay)

    @property
    def need(self) -> Gradients:
        return Gradients(add_product_size, Memory(self.decay, lasting=True), name="abs-product")

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence
