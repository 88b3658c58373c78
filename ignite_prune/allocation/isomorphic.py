"""Isomorphic: units compete only with units of the same kind."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ignite_prune._utils.sparsity import kept
from ignite_prune.allocation.base import Allocation, Layer, Pool


@dataclass(frozen=True)
class Isomorphic(Allocation):
    """One ranking for each kind of layer: every kind is pruned to the target, its layers compete with each other.

    Attention heads are ranked with heads, neurons with neurons, the channels of depthwise convolutions with theirs.
    With a structure, groups are of the same kind if their units lie in the same dimensions of the same kinds of
    parameters, and their scores overlap. Without one, parameters are of the same kind if their shapes after the first
    two dimensions are equal, and both or neither have one input per group (depthwise convolutions).

    Example:
        >>> layers = [Layer("a", (6, 4), 6, None, None, 6), Layer("b", (2, 4), 2, None, None, 2)]
        >>> layers += [Layer("c", (4, 4, 3, 3), 4, None, None, 4)]
        >>> [(len(pool.layers), pool.keep) for pool in Isomorphic().divide(layers, 0.5)]
        [(2, 4), (1, 2)]

    References:
        Fang, Ma, Mi, Wang, "Isomorphic pruning for vision models", 2024, arXiv 2407.04616.
    """

    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        kinds: dict[Hashable, list[Layer]] = {}
        for layer in layers:
            kinds.setdefault(_kind(layer), []).append(layer)
        return [Pool(tuple(alike), kept(sum(each.units for each in alike), sparsity)) for alike in kinds.values()]


def _kind(layer: Layer) -> Hashable:
    if layer.kind is not None:
        return layer.kind
    return len(layer.shape), layer.shape[2:], layer.shape[1:2] == (1,)
