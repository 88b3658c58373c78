"""Scores of coupled units that are comparable between groups of unlike units, such as heads and neurons.

A norm grows with the number of entries. Ranked by plain norms, no head of a transformer is pruned before nearly all
neurons are, whatever the saliency, so scores are normalised before an allocation ranks the units of several groups.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence

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
    masks: Mapping[str, Tensor | None],
    alive: Tensor,
    pattern: Coupled,
) -> Layer:
    """Return what an allocation sees of a group of units.

    Args:
        units: the group.
        structure: of the model.
        scores: of each weight that is scored.
        masks: the masks so far, None where nothing is pruned.
        alive: which units are left, bool.
        pattern: how the scores of slices are combined and normalised.
    """

    def compute() -> Tensor:
        wanted = {slot.name: scores[slot.name].compute() for slot in units.slots if slot.name in scores}
        living = {name: _masked(each, masks.get(name)) for name, each in wanted.items()}
        found = unit_scores(units, living, pattern).cpu()
        if pattern.normalise == "entries" and pattern.norm != torch.inf:
            ones = {name: _masked(torch.ones_like(each), masks.get(name)) for name, each in wanted.items()}
            found = found / unit_scores(units, ones, pattern).cpu().masked_fill(~alive, 1)
        elif pattern.normalise is not None:
            found = found / found[alive].abs().mean().clamp(min=torch.finfo(found.dtype).tiny)
        return found.masked_fill(~alive, 0)

    living = int(alive.count_nonzero())
    # Sparsity is a fraction of the units before any slicing.
    whole = structure.origin.groups[units.name].size
    unpruned = None if alive.all() else alive
    return Layer(units.name, (units.size,), whole, once(compute), unpruned, living, _kind(units, structure))


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the scores with those of pruned entries 0; scores of units are left as they are."""
    return scores if mask is None or mask.shape != scores.shape else scores.masked_fill(~mask, 0)


def _kind(units: UnitGroup, structure: Structure) -> Hashable:
    """Return what groups of the same kind have in common: where their units lie, not how many there are."""
    found = set()
    for slot in units.slots:
        shape, several = structure.shapes[slot.name], int((slot.units >= 0).sum()) > units.size
        found.add((len(shape), shape[2:], shape[1:2] == (1,), slot.dim, several))
    return frozenset(found)


def unit_scores(units: UnitGroup, scores: Mapping[str, Tensor], pattern: Coupled) -> Tensor:
    """Return the score of each unit, ``(units,)``, float64, from the scores of the weights that have slices of it.

    Args:
        units: a group of units, and the slots that they lie in.
        scores: by name, one for each entry in the weight's shape; or 1-D, one for each slice of dim 0.
        pattern: how the scores of slices are combined.
    """
    found = []
    for slot in units.slots:
        given = scores.get(slot.name)
        if given is None or slot.dim >= given.dim():
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
    """Warn of groups that lose no unit, or all that they may, while the others lose half, where chance is no reason.

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
