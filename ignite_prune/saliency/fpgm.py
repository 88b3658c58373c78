"""FPGM: distance of a filter to all others; filters near the geometric median are redundant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_positive
from ignite_prune.saliency.base import Saliency


@dataclass(frozen=True)
class FPGM(Saliency):
    r"""Sum of a filter's distances to all others, :math:`s_i = \sum_j \|F_i - F_j\|_p`: redundant filters score low.

    One score for each slice of dim 0 (for a vector: each entry), for ``Channel()``. Memory: the square of the number of
    filters.

    Args:
        p: order of the norm, at least 1; ``math.inf`` is allowed.

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
    by_slice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.p, float) or self.p != float("inf"):
            check_positive("p", self.p)
        if self.p < 1:
            raise ValueError(f"Argument p should be at least 1, but given {self.p!r}")

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        filters = parameter.detach()
        filters = filters.flatten(1) if filters.ndim > 1 else filters.reshape(-1, 1)
        filters = filters.float() if filters.itemsize < 4 else filters
        # Not by matrix products, which cancel: small distances, which decide the ranking, would be inexact.
        distances = torch.cdist(filters, filters, p=self.p, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.sum(1).view(parameter.shape[:1])
