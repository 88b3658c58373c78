"""Trials of a traced structure: what the model's program does not allow is frozen, or removed with what it needs.

The exported graph holds numbers where the program holds sizes, so only a trial shows whether units can go. Groups that
fail alone may work if the attributes are set that hold their sizes, or if they lose units together with the width that
their size is read from (``x.reshape(b, n, c)`` with ``b, n, c = x.shape``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from ignite_prune.core.selection import named_parameters
from ignite_prune.structure.slicing.size_probe import SizeProbe
from ignite_prune.structure.structure import Structure
from ignite_prune.structure.tracing.attribute_reads import unit_rank
from ignite_prune.structure.tracing.propagation import TracedModel
from ignite_prune.structure.tracing.unit_grouping import UnitGrouping, reasons

_BY_TRIAL = _FAILS, _WRITTEN = "without one of its units the model fails", "writes its size in the program"


def settled_by_trial(model: nn.Module, traced: TracedModel, probe: SizeProbe) -> Structure:
    """Return the structure, with those groups frozen for which a trial fails.

    Args:
        model: the unwrapped model.
        traced: its unit ids, some of which are frozen.
        probe: runs the trials.
    """
    shapes, parameters = shapes_of(model), list(named_parameters(model))
    needed: set[tuple[str, str]] = set()  # attributes without which a trial fails
    while True:
        grouping = UnitGrouping(traced, list(shapes))
        structure = Structure(
            [replace(each, multiple=probe.multiples.get(each.name, 1)) for each in grouping.groups],
            shapes,
            parameters,
            reasons(traced, parameters),
            traced.unknown,
            grouping.work,
            grouping.dropouts,
            grouping.normalised,
            {place: axis for place, axis in grouping.attributes.items() if place in needed},
        )
        fixed_by = {name: op for dim, op in traced.fixed_sizes for name in grouping.along(dim)}
        tried = fixed_by | {name: op for dim, op in traced.tried for name in grouping.along(dim)}
        failing = probe.failing(structure, by_kind=True)
        if probe.stopped:
            return structure
        failing = failing or probe.differing(structure, list(tried))
        if not failing and all(group.multiple == probe.multiples.get(group.name, 1) for group in structure):
            return structure
        likely = _likeliest(grouping, failing, needed)
        if likely:
            needed |= likely
            continue
        tied = _tied(traced, grouping, failing)
        if tied is not None:
            found = settled_by_trial(model, tied, probe)
            if not is_frozen_by_trial(found):
                return found
            traced = replace(traced, same_size=[])
            return min(found, settled_by_trial(model, traced, probe), key=parameters_left)
        failing = probe.failing(structure, among=failing) or failing
        for name, error in failing.items():
            maker = structure.groups[name].slots[structure.groups[name].maker]
            ids = traced.held[maker.name][maker.dim][maker.units >= 0]
            why = f"{_FAILS}, {error}"
            if name in fixed_by:
                why = f"{fixed_by[name]} {_WRITTEN}, where -1 would leave it open"
            traced.units.freeze(ids, why)


def _likeliest(
    grouping: UnitGrouping, failing: Collection[str], needed: Collection[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Return the attributes that may hold the sizes of failing groups, those whose names say so best.

    An attribute of another meaning may have the same value, so the less likely ones are only taken if these do not do.
    """
    ranks = {
        place: unit_rank(place[1])
        for place, axis in grouping.attributes.items()
        if place not in needed and any(name in failing for name, _ in axis.parts)
    }
    return {place for place, rank in ranks.items() if rank == max(ranks.values())}


def _tied(traced: TracedModel, grouping: UnitGrouping, failing: Collection[str]) -> TracedModel | None:
    """Return a copy in which failing groups lose units with the dimensions that their sizes may be read from, or None.

    Elsewhere the copy is the same, and it has no more such dimensions.
    """
    units = traced.units.copy()
    ties = 0
    for written, read in traced.same_size:
        free = not (units.is_frozen(written).any() or units.is_frozen(read).any())
        if free and any(name in failing for dim in (written, read) for name in grouping.along(dim)):
            ties += not torch.equal(units.find(written), units.find(read))
            units.tie(written, read)
    return replace(traced, units=units, same_size=[]) if ties else None


def is_frozen_by_trial(structure: Structure) -> bool:
    """Return whether a dimension keeps its size because a trial failed."""
    return any(each in reason for each in _BY_TRIAL for reason in structure.frozen.values())


def parameters_left(structure: Structure) -> int:
    """Return how many parameters are left if each group keeps one unit."""
    return structure.parameters({group.name: torch.arange(group.size) < 1 for group in structure})


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a model's parameters and buffers by name; tied tensors are listed once."""
    return {name: tensor.shape for name, tensor in {**named_parameters(model), **dict(model.named_buffers())}.items()}
