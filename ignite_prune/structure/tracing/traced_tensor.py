"""What is known of a tensor in the graph: the unit of every index of its dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Dim = Tensor
"""The unit ids of a dimension's indices, ``(size,)``."""


def fixed(size: int) -> Dim:
    """Return a dimension that no weight decides."""
    return torch.zeros(size, dtype=torch.int64)


@dataclass(frozen=True)
class TracedTensor:
    """A tensor of the graph.

    Args:
        dims: ids of each dimension's indices.
        zero: whether a masked unit's entries are 0 here whichever dimension it lies along, as in a parameter and what
            is made of it by moving its entries: a sum over units then may run over what is left alone.
    """

    dims: tuple[Dim, ...]
    zero: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(dim) for dim in self.dims)

    def put(self, at: int, *dims: Dim) -> TracedTensor:
        """Return it with other dimensions, or none, in a dimension's place."""
        return TracedTensor((*self.dims[:at], *dims, *self.dims[at + 1 :]), self.zero)

    @classmethod
    def fixed(cls, shape: Sequence[int]) -> TracedTensor:
        """Return a tensor that no weight decides the shape of."""
        return cls(tuple(fixed(int(size)) for size in shape))
