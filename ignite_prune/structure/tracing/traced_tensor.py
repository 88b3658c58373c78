"""A tensor of the graph as unit ids: one id per index of each dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune.structure.tracing.zero import Zero

Dim = Tensor
"""Unit ids of the indices of one dimension, int64, ``(size,)``."""


def fixed(size: int) -> Dim:
    """Return the ids of a dimension that no pruning changes, such as the batch: all 0."""
    return torch.zeros(size, dtype=torch.int64)


@dataclass(frozen=True)
class TracedTensor:
    """A tensor of the graph.

    Args:
        dims: unit ids of each dimension.
        zero: whether the entries of pruned units are 0.
    """

    dims: tuple[Dim, ...]
    zero: Zero = Zero.NO

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(dim) for dim in self.dims)

    def put(self, at: int, *dims: Dim) -> TracedTensor:
        """Return a copy with dimension ``at`` replaced by ``dims``, or removed if there are none."""
        return TracedTensor((*self.dims[:at], *dims, *self.dims[at + 1 :]), self.zero)

    @classmethod
    def fixed(cls, shape: Sequence[int]) -> TracedTensor:
        """Return a tensor whose shape depends on no weight."""
        return cls(tuple(fixed(int(size)) for size in shape))
