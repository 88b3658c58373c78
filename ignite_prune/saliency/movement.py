"""Movement: whether training moves a weight away from zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ignite_prune._utils.arguments import check_is, check_positive
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.gradient import add_product
from ignite_prune.saliency.needs import Gradients, Memory


@dataclass(frozen=True)
class Movement(Informed):
    r"""Movement of the weight away from zero, :math:`s = -\alpha \sum_t g_t w_t`, summed over the whole training.

    A growing weight scores high even while it is small, which suits fine-tuning, where magnitudes come from
    pretraining. Scores have either sign. Memory: one number per entry; time: one pass per step.

    Args:
        scale: :math:`\alpha`, the paper's learning rate of the scores; it does not affect the ranking.
        memory: decay and dtype of the running sum.

    Raises:
        TypeError: ``memory`` is not a ``Memory``.
        ValueError: ``scale`` is not a finite number above 0.

    Example:
        >>> import torch
        >>> Movement().formula(torch.tensor([1.0, 1.0]), torch.tensor([-0.5, 0.5]))
        tensor([ 0.5000, -0.5000])

    References:
        Sanh, Wolf, Rush, "Movement pruning", 2020, arXiv 2005.07683.
    """

    scale: float = 1.0
    memory: Memory = Memory(lasting=True)

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        check_is("memory", self.memory, Memory)

    @property
    def need(self) -> Gradients:
        return Gradients(add_product, self.memory, name="product")

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence * -self.scale
