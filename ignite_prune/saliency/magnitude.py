"""Magnitude: the absolute value of a weight, the baseline of all criteria."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ignite_prune.saliency.base import Saliency


@dataclass(frozen=True)
class Magnitude(Saliency):
    r"""Absolute value of the weight, :math:`s = |w|^p`.

    For single entries the ranking is the same for every ``p``; it matters for patterns that sum entries
    (``Block(reduce="sum")`` with ``p=2`` compares sums of squares).

    Args:
        p: the exponent, finite and above 0.

    Raises:
        ValueError: ``p`` is not a finite number above 0.

    Example:
        >>> import torch
        >>> Magnitude(p=2)("fc.weight", torch.tensor([-3.0, 0.5]))
        tensor([9.0000, 0.2500])

    References:
        Han, Pool, Tran, Dally, "Learning both weights and connections", 2015, arXiv 1506.02626.
    """

    p: float = 1
    pointwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.p, bool) or not isinstance(self.p, (int, float)) or not 0 < self.p < math.inf:
            raise ValueError(f"Argument p should be a finite number above 0, but given {self.p!r}")

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        size = parameter.detach().abs()
        if self.p == 1:
            return size
        return (size.float() if size.dtype.itemsize < 4 else size).pow(self.p)  # squares overflow in half
