"""Collects the unit ids of a traced model into groups, and finds the intermediate dimensions that they index."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ignite_prune.structure.tracing.propagation import TracedModel
from ignite_prune.structure.tracing.traced_tensor import Dim
from ignite_prune.structure.unit_group import Axis, Slot, UnitGroup, Work

Place = tuple[str, int, Tensor, Tensor]
"""A dimension of a tensor: name, dimension, the root of each index's id, and which indices are not frozen."""


class UnitGrouping:
    """Groups of units of a traced model, and its FLOPs, norms and Dropout modules in terms of them.

    Args:
        traced: result of :func:`ignite_prune.structure.tracing.export.trace_units`.
        names: names of its parameters and buffers, tied ones once.
    """

    def __init__(self, traced: TracedModel, names: Sequence[str]) -> None:
        self._units = traced.units
        self._unit_of_root = torch.full((2, len(traced.units)), -1)  # by root: the group of a unit and its number there
        self.groups = self._grouped(traced, names)
        self.work = tuple(self._work(flops, dims) for flops, dims in traced.work)
        normalised = {path: self._axes([dim]) for path, dim in traced.normalised.items()}
        self.normalised = {path: axes[0] for path, axes in normalised.items() if axes}
        self.attributes: dict[tuple[str, str], Axis] = {}
        for path, name, dim in traced.attributes:
            axis = None if self._units.is_frozen(dim).all() else self._axis(dim)
            if axis is not None and axis.parts:
                self.attributes.setdefault((path, name), axis)
        self.dropouts = {path: tuple(map(self._axes, uses)) for path, uses in traced.dropped.items()}

    def _grouped(self, traced: TracedModel, names: Sequence[str]) -> list[UnitGroup]:
        """Return groups of the units that occur in the same set of dimensions."""
        places = [
            (name, dim, self._units.find(ids), ~self._units.is_frozen(ids))
            for name in names
            for dim, ids in enumerate(traced.held[name])
        ]
        places = [place for place in places if place[3].any()]
        where: dict[int, list[int]] = {}
        for number, (_, _, roots, free) in enumerate(places):
            for root in roots[free].unique().tolist():  # type: ignore[no-untyped-call]
                where.setdefault(root, []).append(number)
        by_places: dict[tuple[int, ...], list[int]] = {}
        for root in sorted(where):
            by_places.setdefault(tuple(where[root]), []).append(root)
        makers = {(name, d) for name in names for d, ids in enumerate(traced.held[name]) if id(ids) in traced.makers}
        groups: list[UnitGroup] = []
        for numbers, units in by_places.items():
            taken = {group.name for group in groups}
            groups.append(_group([places[i] for i in numbers], torch.tensor(units), makers, taken))
        for number, units in enumerate(by_places.values()):
            self._unit_of_root[0, units], self._unit_of_root[1, units] = number, torch.arange(len(units))
        self._names = [group.name for group in groups]
        return sorted(groups, key=lambda group: names.index(group.slots[0].name))

    def _axes(self, dims: Sequence[Dim]) -> tuple[Axis, ...]:
        """Return the dimensions that have units of groups, as axes."""
        axes = (self._axis(dim) for dim in dims if len(dim) and not self._units.is_frozen(dim).all())
        return tuple(axis for axis in axes if axis.parts)

    def _axis(self, dim: Dim) -> Axis:
        groups, units = self._unit_of_root[:, self._units.find(dim)]
        numbers = [number for number in groups.unique().tolist() if number >= 0]
        return Axis(len(dim), tuple((self._names[n], units.where(groups == n, -1)) for n in numbers))

    def along(self, dim: Dim) -> list[str]:
        """Return the names of the groups that have units in a dimension."""
        return [name for name, _ in self._axis(dim).parts] if not self._units.is_frozen(dim).all() else []

    def _work(self, flops: int, dims: Sequence[Dim]) -> Work:
        axes = self._axes(dims)
        return Work(flops // max(1, math.prod(axis.size for axis in axes)), axes)


def _group(
    places: Sequence[Place], units: Tensor, makers: Collection[tuple[str, int]], taken: Collection[str]
) -> UnitGroup:
    """Return a group, named after the first weight that produces its units and whose name is not taken."""
    slots = tuple(Slot(name, dim, _numbers(units, roots)) for name, dim, roots, _ in places)
    likely = [(slot.name, slot.dim) in makers for slot in slots], [slot.dim == 0 for slot in slots], [True]
    order = [number for each in likely for number, is_so in enumerate(each[: len(slots)]) if is_so]
    names = [slot.name + (f"[{slot.dim}]" if slot.dim else "") for slot in slots]
    maker = next((number for number in order if names[number] not in taken), order[0])
    name, more = names[maker], 1
    while name in taken:  # the units are other parts of the same weights
        more += 1
        name = f"{names[maker]}#{more}"
    return UnitGroup(name, len(units), slots, maker)


def _numbers(units: Tensor, roots: Tensor) -> Tensor:
    """Return the position in ``units`` of each index's root, -1 where it is not among them."""
    found = torch.searchsorted(units, roots).clamp(max=len(units) - 1)
    return torch.where(units[found] == roots, found, -1)


def reasons(traced: TracedModel, names: Sequence[str]) -> dict[tuple[str, int], str]:
    """Return why fully frozen dimensions are frozen: the first reason recorded for one of their units."""
    why: dict[int, str] = {}
    for ids, reason in traced.units.reasons:
        for root in traced.units.find(ids).unique().tolist():  # type: ignore[no-untyped-call]
            why.setdefault(root, reason)
    found = {}
    for name in names:
        for dim, ids in enumerate(traced.held[name]):
            if len(ids) and traced.units.is_frozen(ids).all():
                roots = traced.units.find(ids)
                found[name, dim] = next((why[r] for r in roots.tolist() if r in why), "it is given")
    return found
