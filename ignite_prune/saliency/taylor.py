"""Taylor: how much the loss would change without a weight, to first order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ignite_prune._utils.arguments import check_is
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.gradient import add_product_size, add_product_square
from ignite_prune.saliency.needs import Gradients, Memory


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
