"""FPGM: filters near the geometric median say nothing that the others do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_positive
from ignite_prune.saliency.base import Saliency


@dataclass(frozen=True)
class FPGM(Saliency):
    r"""A filter's distance to all others, :math:`s_i = \sum_j \|F_i - F_j\|_p`: the most replaceable go first.

    One score for each slice of dim 0 (of a vector: each entry), for ``Channel()``. Memory: the square of the number of
    filters.

    Args:
        p: the order of the norm, at least 1 (``math.inf`` too).

    Raises:
        ValueError: ``p`` is below 1.

    Example:
        >>> import torch
        >>> FPGM()("conv.weight", torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 4.0]]))
        tensor([6.0000, 5.2426, 9.2426])

    References:
        He, Liu, Wang, Hu, Yang, "Filter pruning via geometric median", 2018, arXiv 1811.00250.
    """

    p: float = 2
    by_unit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.p != float("inf"):
            check_positive("p", self.p)
        if self.p < 1:
            raise ValueError(f"Argument p should be at least 1, but given {self.p!r}")

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        filters = parameter.detach()
        filters = filters.flatten(1) if filters.ndim > 1 else filters.reshape(-1, 1)
        filters = filters.float() if filters.itemsize < 4 else filters
        # Differences, not products: those lose the small distances, and the small ones are what counts.
        distances = torch.cdist(filters, filters, p=self.p, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.sum(1).view(parameter.shape[:1])
