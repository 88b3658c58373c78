"""Connections move between layers, to where the momentum is: sparse momentum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ignite_prune._utils.arguments import check_is
from ignite_prune.allocation.erk import apportion
from ignite_prune.regrow.base import Connections, Move, Rewired, drop_smallest, grow_best
from ignite_prune.regrow.fraction import check_fraction
from ignite_prune.regrow.growth import ByMomentum, Growth, _magnitude


@dataclass(frozen=True)
class Redistribute(Move):
    """Drop the ``ceil(fraction * active)`` smallest weights of each layer, and share them out anew.

    A layer's share is its importance, the mean |momentum| of its active weights; what overflows a layer's free
    entries goes to the others. The whole keeps its number of connections to the unit.

    Args:
        growth: what grows within a layer.
        fill: how full of what is free a layer may become, in (0, 1], where there is room elsewhere.

    Raises:
        TypeError, ValueError: a bad argument.

    References:
        Dettmers, Zettlemoyer, "Sparse networks from scratch: faster training without losing performance", 2019,
        arXiv 1907.04840.
    """

    growth: Growth = ByMomentum()
    fill: float = 0.99

    def __post_init__(self) -> None:
        check_is("growth", self.growth, Growth)
        if self.fill != 1:
            check_fraction("fill", self.fill)

    def __call__(self, layers: Sequence[Connections], fraction: float, generator: torch.Generator) -> list[Rewired]:
        dropped = [math.ceil(fraction * layer.active) for layer in layers]
        survivors = [drop_smallest(layer.weight, layer.mask, count) for layer, count in zip(layers, dropped)]
        free = [mask.numel() - int(mask.count_nonzero()) for mask in survivors]
        counts = shared(sum(dropped), [importance(layer) for layer in layers], free, dropped, self.fill)
        return [
            Rewired(stays, grow_best(stays, self.growth.scores(layer, generator), count))
            for layer, stays, count in zip(layers, survivors, counts)
        ]


def importance(layer: Connections) -> float:
    """Return the mean |momentum| of a layer's active weights, 0 where it has none."""
    momentum = _magnitude(layer, "the dense momentum")[layer.mask]
    return float(momentum.double().mean()) if momentum.numel() else 0.0


def shared(
    total: int, weights: Sequence[float], free: Sequence[int], fallback: Sequence[int], fill: float = 0.99
) -> list[int]:
    """Divide ``total`` in proportion to ``weights``, at most ``fill`` of what is free; to the unit.

    Args:
        total: at most all that is free.
        weights: of at least 0.
        free: the most that each can take.
        fallback: the weights where all are 0.
        fill: exceeded only where nothing else has room.

    Example:
        >>> shared(10, [3.0, 1.0, 1.0], [5, 100, 100], [1, 1, 1])
        [4, 3, 3]
    """
    caps = [int(fill * room) for room in free]
    if sum(caps) < total:
        caps = list(free)
    wanting = sum(cap for cap, weight in zip(caps, weights) if weight > 0)
    if wanting < total:  # those with momentum are full: the rest goes by what each gave
        filled = [cap if weight > 0 else 0 for cap, weight in zip(caps, weights)]
        left = [cap - part for cap, part in zip(caps, filled)]
        rest = apportion(total - wanting, [max(each, 1) if room else 0.0 for each, room in zip(fallback, left)], left)
        return [part + more for part, more in zip(filled, rest)]
    return apportion(total, list(weights), caps)
