"""First-order saliencies: what the gradient says of a weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ignite_prune.arguments import check_is, check_positive
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
    r"""The size of the gradient, :math:`s = \sum_t |g_t|`, over the steps since the last update.

    In training ``g`` is what the optimizer is about to step with: unscaled, accumulated, averaged over ranks. Memory:
    one number an entry; time: one pass a step.

    Args:
        memory: decay and type of the running sum.

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


@dataclass(frozen=True)
class Taylor(Informed):
    r"""How much the loss would change without the weight, to first order: :math:`s = E_t |g_t w|`, or its square.

    The mean is over the batches (training steps) since the last update. On a converged net the gradient has vanished
    and with it what this can say: use :class:`OBD` there. Memory: one number an entry; time: one pass a step.

    Args:
        squared: :math:`(g w)^2` instead of :math:`|g w|`.
        by_unit: one score for each slice of dim 0, of the *sum* :math:`\sum g w` over the slice and its bias: the
            filter importance of the paper, and Neural Compressor's ``weighted_gradient``. For ``Channel()``. A
            vector's slices are its entries.
        memory: decay and type of the running sum.

    Raises:
        TypeError: ``squared`` or ``by_unit`` is not a bool, or ``memory`` not a ``Memory``.

    Example:
        >>> import torch
        >>> w, g = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.25])
        >>> Taylor().formula(w, (g * w).abs())
        tensor([1.0000, 0.2500])

    References:
        Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance estimation for neural network pruning", 2019,
        arXiv 1906.10771.
    """

    squared: bool = False
    by_unit: bool = False
    memory: Memory = Memory()

    def __post_init__(self) -> None:
        check_is("squared", self.squared, bool)
        check_is("by_unit", self.by_unit, bool)
        check_is("memory", self.memory, Memory)

    @property
    def need(self) -> Gradients:
        term, name = (add_product_square, "square-product") if self.squared else (add_product_size, "abs-product")
        return Gradients(term, self.memory, mean=True, by_unit=self.by_unit, name=name)

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence


@dataclass(frozen=True)
class Movement(Informed):
    r"""Whether training moves the weight away from zero: :math:`s = -\alpha \sum_t g_t w_t`, over all of training.

    A weight that grows scores high even while it is small: for fine-tuning, where magnitudes are inherited. Scores are
    of either sign. Memory: one number an entry; time: one pass a step.

    Args:
        scale: :math:`\alpha`, the paper's learning rate of the scores; it changes no ranking.
        memory: decay and type of the running sum.

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
