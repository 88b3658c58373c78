"""Gradient, and the running sums that first-order saliencies share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ignite_prune._utils.arguments import check_is
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import Gradients, Memory


def add_size(running: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Add ``|g|``."""
    return running.add_(gradient.abs())


def add_square(running: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Add ``g²``."""
    return running.addcmul_(gradient, gradient)


def add_product(running: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Add ``g·w``."""
    return running.addcmul_(gradient, weight)


def add_product_size(running: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Add ``|g·w|``."""
    return running.add_((gradient * weight).abs_())


def add_product_square(running: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Add ``(g·w)²``."""
    product = gradient * weight
    return running.addcmul_(product, product)


@dataclass(frozen=True)
class Gradient(Informed):
    r"""Absolute gradient, :math:`s = \sum_t |g_t|`, summed over the steps since the last update.

    In training ``g`` is the gradient that the optimizer steps with: unscaled, accumulated, averaged over ranks. Memory:
    one number per entry; time: one pass per step.

    Args:
        memory: decay and dtype of the running sum.

    Raises:
        TypeError: ``memory`` is not a ``Memory``.

    Example:
        >>> import torch
        >>> Gradient().formula(torch.tensor([5.0, 1.0]), torch.tensor([0.1, 0.3]))
        tensor([0.1000, 0.3000])

    References:
        Intel Neural Compressor's ``gradient`` criterion.
    """

    memory: Memory = Memory()

    def __post_init__(self) -> None:
        check_is("memory", self.memory, Memory)

    @property
    def need(self) -> Gradients:
        return Gradients(add_size, self.memory, name="abs")

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence
