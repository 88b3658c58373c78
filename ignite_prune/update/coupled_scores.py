"""Scores of coupled units that are comparable between groups of unlike units, such as heads and neurons.

A norm grows with the number of entries. Ranked by plain norms, no head of a transformer is pruned before nearly all
neurons are, whatever the saliency. So an allocation gets scores that are normalised by the mean of their kind.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ignite_prune.allocation import Layer
from ignite_prune.allocation.base import once
from ignite_prune.core.check_report import SparsityWarning
from ignite_prune.pattern import Coupled
from ignite_prune.structure import Structure, UnitGroup
from ignite_prune.update.scores import ParameterScores


def coupled_layer(
    units: UnitGroup,
    structure: Structure,
    scores: Mapping[str, ParameterScores],
    alive: Tensor,
    pattern: Coupled,
) -> Layer:
    """Return what an allocation sees of a group of units.

    Args:
        units: the group.
        structure: of the model.
        scores: of each weight that is scored.
        alive: which units are left, bool.
        pattern: how the scores of slices are combined.
    """

    def compute() -> Tensor:
        wanted = {slot.name: scores[slot.name].compute() for slot in units.slots if slot.name in scores}
        outputs = {name: scores[name].outputs for name in wanted}
        return unit_scores(units, wanted, pattern, outputs).cpu().masked_fill(~alive, 0)

    living = int(alive.count_nonzero())
    # Sparsity is a fraction of the units before any slicing.
    whole = structure.origin.groups[units.name].size
    unpruned = None if alive.all() else alive
    return Layer(units.name, (units.size,), whole, once(compute), unpruned, living, _kind(units, structure))


def comparable(layers: Sequence[Layer], normalise: str | None) -> list[Layer]:
    """Return the layers with their scores divided by a mean, so that those of unlike units can be ranked together.

    Args:
        layers: from :func:`coupled_layer`.
        normalise: ``"kind"``: by the mean absolute score of the units that are left in all groups of the kind;
            ``"group"``: in the group; None: not at all.
    """
    if normalise is None:
        return list(layers)
    alike: dict[Hashable, list[Layer]] = {}
    for layer in layers:
        alike.setdefault(layer.kind if normalise == "kind" else layer.name, []).append(layer)
    return [each for group in alike.values() for each in _divided(group)] if len(alike) > 1 else list(layers)


def _divided(layers: Sequence[Layer]) -> list[Layer]:
    def mean() -> float:
        total = sum(float(layer.scores().abs().sum(dtype=torch.float64)) for layer in layers)  # of pruned units: 0
        return max(total / max(sum(layer.living for layer in layers), 1), torch.finfo(torch.float64).tiny)

    divisor = once(mean)
    return [replace(layer, scores=once(partial(_quotient, layer.scores, divisor))) for layer in layers]


def _quotient(scores: Callable[[], Tensor], divisor: Callable[[], float]) -> Tensor:
    return scores() / divisor()


def _kind(units: UnitGroup, structure: Structure) -> Hashable:
    """Return what groups of the same kind have in common: where their units lie, not how many there are."""
    found = set()
    for slot in units.slots:
        shape, several = structure.shapes[slot.name], int((slot.units >= 0).sum()) > units.size
        found.add((len(shape), shape[2:], shape[1:2] == (1,), slot.dim, several))
    return frozenset(found)


def unit_scores(units: UnitGroup, scores: Mapping[str, Tensor], pattern: Coupled, outputs: Mapping[str, int]) -> Tensor:
    """Return the score of each unit, ``(units,)``, float64, from the scores of the weights that have slices of it.

    Args:
        units: a group of units, and the slots that they lie in.
        scores: by name, one for each entry in the weight's shape; or 1-D, one for each output.
        pattern: how the scores of slices are combined.
        outputs: by name, the dimension of the weight's outputs.
    """
    found = []
    for slot in units.slots:
        given = scores.get(slot.name)
        if given is None or (slot.dim != outputs[slot.name] if given.dim() == 1 else slot.dim >= given.dim()):
            continue
        if given.dim() == 1 and len(given) == units.size:
            found.append(given.double())
            continue
        slices = given.double() if given.dim() == 1 else pattern.slices(given, slot.dim)
        if len(slices) != len(slot.units):
            raise ValueError(
                f"The saliency of parameter {slot.name!r} has {len(slices)} scores, but there are {units.size} units"
            )
        found.append(pattern.joined(slices, slot.units, units.size))
    if not found:
        raise ValueError(f"No weight with slices of {units.name!r} is scored; it should be among params")
    return pattern.together([each.to(found[0].device) for each in found])


def warn_of_uneven(layers: Sequence[Layer], left: Mapping[str, int], pattern: Coupled) -> None:
    """Warn of groups that lose no unit, or as many as allowed, while the others lose half, if chance cannot explain it.

    Groups of the same kind are taken together, and each large group alone.

    Args:
        layers: what the allocation saw of each group.
        left: the number of units left in each.
        pattern: its ``left`` is the number of units that a group keeps at least.
    """
    together: dict[Hashable, list[Layer]] = {}
    for layer in layers:
        together.setdefault(layer.kind, []).append(layer)
        together.setdefault(layer.name, []).append(layer)
    whole, all_left = sum(layer.units for layer in layers), sum(left.values())
    fraction = 1 - all_left / whole
    untouched, emptied = list[str](), list[str]()
    for alike in together.values():
        size, now = sum(layer.units for layer in alike), sum(left[layer.name] for layer in alike)
        may_go = size - sum(pattern.left(0, layer.units) for layer in alike)
        others = 1 - (all_left - now) / max(whole - size, 1)
        if now == size and others >= 0.5 and (1 - fraction) ** may_go < _CHANCE:
            untouched += [layer.name for layer in alike]
        elif now <= size - may_go and others <= 0.5 and fraction**may_go < _CHANCE and size < whole:
            emptied += [layer.name for layer in alike]
    told = [f"{_named(untouched)} lost no unit"] * bool(untouched) + [f"{_named(emptied)} all they may"] * bool(emptied)
    if told:
        warnings.warn(
            f"Of the groups of coupled units {' and '.join(told)}, unlike the others: the scores of unlike groups are "
            "ranked together. allocation.Isomorphic() and Uniform() divide a sparsity evenly, and "
            "Global(min_density=, max_sparsity=) bounds what a group loses",
            SparsityWarning,
            stacklevel=2,
        )


_CHANCE = 0.002


def _named(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
