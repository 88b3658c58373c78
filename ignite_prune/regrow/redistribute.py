"""Redistribute: drop and grow across layers, by mean momentum (sparse momentum)."""

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
    """Drops the ``ceil(fraction * active)`` smallest weights of each layer and redistributes their number over layers.

    The share of a layer is proportional to its importance, the mean absolute momentum of its active weights; a share
    that exceeds the layer's free entries goes to the others. The total number of connections stays exactly the same.

    Args:
        growth: scores of the entries to grow within a layer.
        fill: largest fraction of its free entries that a layer may grow, in (0, 1], if other layers have room.

    Raises:
        TypeError, ValueError: ``growth`` is not a :class:`Growth`, or ``fill`` is not a number in (0, 1].

    References:
        Dettmers, Zettlemoyer, "Sparse networks from scratch: faster training without losing performance", 2019,
        arXiv 1907.04840.
    """

    growth: Growth = ByMomentum()
    fill: float = 0.99

    def __post_init__(self) -> None:
        check_is("growth", self.growth, Growth)
        if not isinstance(self.fill, int | float) or self.fill != 1:
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
    """Return the mean absolute momentum of a layer's active weights, 0 if it has none."""
    momentum = _magnitude(layer, "the dense momentum")[layer.mask]
    return float(momentum.double().mean()) if momentum.numel() else 0.0


def shared(
    total: int, weights: Sequence[float], free: Sequence[int], fallback: Sequence[int], fill: float = 0.99
) -> list[int]:
    """Divide ``total`` exactly, in proportion to ``weights`` and at most ``fill`` of the free entries of each.

    Args:
        total: the number to divide, at most the sum of ``free``.
        weights: the weights, at least 0.
        free: the most that each can get.
        fallback: weights of those with weight 0, once the others are full.
        fill: fraction of ``free``, exceeded only if no other has room.

    Example:
        >>> shared(10, [3.0, 1.0, 1.0], [5, 100, 100], [1, 1, 1])
        [4, 3, 3]
    """
    caps = [int(fill * room) for room in free]
    if sum(caps) < total:
        caps = list(free)
    wanting = sum(cap for cap, weight in zip(caps, weights) if weight > 0)
    if wanting < total:  # layers with momentum are full: the rest is divided by the numbers dropped
        filled = [cap if weight > 0 else 0 for cap, weight in zip(caps, weights)]
        left = [cap - part for cap, part in zip(caps, filled)]
        rest = apportion(total - wanting, [max(each, 1) if room else 0.0 for each, room in zip(fallback, left)], left)
        return [part + more for part, more in zip(filled, rest)]
    return apportion(total, list(weights), caps)
