"""Taylor: first-order change of the loss when a weight is removed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ignite_prune._utils.arguments import check_is
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.gradient import add_product_size, add_product_square
from ignite_prune.saliency.needs import Gradients, Memory


@dataclass(frozen=True)
class Taylor(Informed):
    r"""First-order change of the loss when the weight is removed, :math:`s = E_t |g_t w|`, or its square.

    The mean is over the batches (training steps) since the last update. In a converged network gradients vanish, and
    the scores are uninformative: use :class:`OBD` there. Memory: one number per entry; time: one pass per step.

    Args:
        squared: :math:`(g w)^2` instead of :math:`|g w|`.
        by_unit: one score for each slice of dim 0 (for a vector: each entry), of the *sum* :math:`\sum g w` over the
            slice and its bias: the paper's filter importance, Neural Compressor's ``weighted_gradient``. For
            ``Channel()``.
        memory: decay and dtype of the running sum.

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
