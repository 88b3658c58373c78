"""GraSP: preserve the gradient flow of a network at initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ignite_prune._utils.arguments import check_is, check_positive
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import HessianGradient


@dataclass(frozen=True)
class GraSP(Informed):
    r"""Decrease of the gradient norm when the weight is removed, :math:`s = \theta \odot Hg`.

    The paper scores :math:`-\theta \odot Hg` and removes the largest; here the smallest scores are removed, as
    everywhere, so the sign is reversed. Scores have either sign. Made for a network at initialisation. It runs extra
    forward and backward passes: give ``loss_fn`` (and ``data``; a ``PruneHandler`` otherwise uses the trainer's
    batches). Memory: one number per entry and a second-order graph; time: about three training steps per batch.

    Args:
        temperature: divisor of the logits before the loss.
        anytime: allow it on a network that is already pruned.

    Raises:
        TypeError: ``anytime`` is not a bool.
        ValueError: ``temperature`` is not a finite number above 0.

    Example:
        >>> import torch
        >>> GraSP().formula(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5]))
        tensor([ 0.5000, -1.0000])

    References:
        Wang, Zhang, Grosse, "Picking winning tickets before training by preserving gradient flow", 2020,
        arXiv 2002.07376.
    """

    temperature: float = 200.0
    anytime: bool = False
    at_init: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        check_is("anytime", self.anytime, bool)
        object.__setattr__(self, "once", not self.anytime)

    @property
    def need(self) -> HessianGradient:
        return HessianGradient(self.temperature)

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return weight * evidence
