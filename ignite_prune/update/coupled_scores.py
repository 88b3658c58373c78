"""Scores of coupled units, from the scores of the weights that have slices of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor

from ignite_prune.allocation import Layer
from ignite_prune.allocation.base import once
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
