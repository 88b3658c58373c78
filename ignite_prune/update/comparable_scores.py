"""Scores of unlike units, such as heads and neurons, on one scale, so that an allocation can rank them together.

A norm grows with the number of entries: ranked by plain norms, no head of a transformer is pruned before nearly all
neurons are, and the units of a pooler, which few weights read, are pruned first. So groups are sorted into kinds whose
scores overlap, and the scores of each kind are divided by their mean. Where one ranking is made over several kinds, a
kind of nearly equal scores, as heads have, is spread as widely as the largest one: otherwise all of its units are
pruned at once, or none.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ignite_prune.allocation import Layer

_APART = 0.2
"""Two groups are of different kinds if a unit of one is smaller than a unit of the other in less than this share."""
_NARROWEST, _WIDEST = 0.25, 32.0


def comparable(layers: Sequence[Layer], normalise: str | None, spread: bool = False) -> list[Layer]:
    """Return the layers with scores that can be ranked together, and with their kinds.

    Args:
        layers: one for each group of units; the scores are computed here.
        normalise: ``"kind"``: divided by the mean absolute score of the units that are left in all groups of the kind;
            ``"group"``: in the group; None: not at all.
        spread: give all kinds the relative spread of the one with most units, for one ranking over all. The order
            within a kind does not change, and zeros stay zeros.
    """
    if normalise is None:
        return list(layers)
    if normalise == "group":
        kinds = [[layer] for layer in layers]
    else:
        kinds = [part for alike in _of_one_kind(layers) for part in _overlapping(alike)]
    if len(kinds) < 2:
        return list(layers)
    divided = [_divided(kind) for kind in kinds]
    if spread and normalise == "kind":
        typical = max((sum(layer.living for layer in kind), _spread_of(kind)) for kind in divided)[1]
        divided = [_spread(kind, typical) for kind in divided]
    found = {
        layer.name: layer if normalise == "group" else replace(layer, kind=(layer.kind, number))
        for number, kind in enumerate(divided)
        for layer in kind
    }
    return [found[layer.name] for alike in _of_one_kind(layers) for layer in alike]


def _of_one_kind(layers: Sequence[Layer]) -> list[list[Layer]]:
    found: dict[Hashable, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.kind, []).append(layer)
    return list(found.values())


def _overlapping(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Return the layers in parts, so that the scores of each overlap with those of the smallest layer of its part."""
    if len(layers) < 2:
        return [list(layers)]
    parts: list[list[Layer]] = []
    ordered = {layer.name: _living(layer).sort().values for layer in layers}
    for layer in sorted(layers, key=lambda layer: float(ordered[layer.name].sum()) / max(layer.living, 1)):
        if not parts or not _overlap(ordered[parts[-1][0].name], ordered[layer.name]):
            parts.append([])
        parts[-1].append(layer)
    return parts


def _overlap(smaller: Tensor, larger: Tensor) -> bool:
    """Return whether units of the two are often in either order; scores in ascending order, equal ones count half."""
    if not len(smaller) or not len(larger):
        return False
    below = torch.searchsorted(smaller, larger) + torch.searchsorted(smaller, larger, right=True)
    share = float(below.double().mean()) / (2 * len(smaller))
    return _APART <= share <= 1 - _APART


def _living(layer: Layer) -> Tensor:
    scores = layer.scores().double()
    return scores.flatten() if layer.alive is None else scores[layer.alive]


def _divided(layers: Sequence[Layer]) -> list[Layer]:
    total = sum(float(layer.scores().abs().sum(dtype=torch.float64)) for layer in layers)  # of pruned units: 0
    divisor = max(total / max(sum(layer.living for layer in layers), 1), torch.finfo(torch.float64).tiny)
    return [_with(layer, layer.scores() / divisor) for layer in layers]


def _spread_of(layers: Sequence[Layer]) -> float:
    """Return the standard deviation of absolute scores with mean 1."""
    scores = torch.cat([_living(layer) for layer in layers]).abs()
    return float(scores.std(correction=0)) if len(scores) else 0.0


def _spread(layers: Sequence[Layer], typical: float) -> list[Layer]:
    """Return the layers with scores raised to the power that gives them about the typical spread."""
    own = _spread_of(layers)
    power = min(max(typical / own, _NARROWEST), _WIDEST) if own > 0 else 1.0
    if power == 1:
        return list(layers)
    return _divided([_with(layer, layer.scores().sign() * layer.scores().abs() ** power) for layer in layers])


def _with(layer: Layer, scores: Tensor) -> Layer:
    return replace(layer, scores=lambda: scores)
