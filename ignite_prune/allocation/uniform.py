"""Uniform: the same sparsity for every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ignite_prune._utils.sparsity import kept
from ignite_prune.allocation.base import Allocation, Layer, Pool


@dataclass(frozen=True)
class Uniform(Allocation):
    """Prunes each parameter to the target sparsity; the number of pruned units is rounded half to even.

    Example:
        >>> layers = [Layer("a", (10,), 10, None, None, 10), Layer("b", (4,), 4, None, None, 4)]
        >>> [pool.keep for pool in Uniform().divide(layers, 0.5)]
        [5, 2]
    """

    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        return [Pool((layer,), kept(layer.units, sparsity)) for layer in layers]
