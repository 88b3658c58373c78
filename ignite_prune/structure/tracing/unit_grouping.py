"""From the ids of a traced model's dimensions to groups of units, and to where they lie in the program."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ignite_prune.structure.tracing.export import Traced
from ignite_prune.structure.tracing.traced_tensor import Dim
from ignite_prune.structure.unit_group import Axis, Slot, UnitGroup, Work

Place = tuple[str, int, Tensor, Tensor]
"""A tensor's dimension: name, number, the root of each index' id, and whether it is free to go."""


class UnitGrouping:
    """What is asked of a traced model.

    Args:
        traced: from :func:`ignite_prune.structure.tracing.export.follow`.
        names: of its parameters and buffers, tied ones once.
    """

    def __init__(self, traced: Traced, names: Sequence[str]) -> None:
        self._units = traced.units
        self._whose = torch.full((2, len(traced.units)), -1)  # the group and the number of each unit, by its root
        self.groups = self._grouped(traced, names)
        self.work = tuple(self._work(flops, dims) for flops, dims in traced.work)
        normalised = {path: self._axes([dim]) for path, dim in traced.normalised.items()}
        self.normalised = {path: axes[0] for path, axes in normalised.items() if axes}
        self.dropouts = {path: tuple(map(self._axes, uses)) for path, uses in traced.dropped.items()}

    def _grouped(self, traced: Traced, names: Sequence[str]) -> list[UnitGroup]:
        """Units that lie along the same dimensions are a group."""
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
        alike: dict[tuple[int, ...], list[int]] = {}
        for root in sorted(where):
            alike.setdefault(tuple(where[root]), []).append(root)
        makers = {(name, d) for name in names for d, ids in enumerate(traced.held[name]) if id(ids) in traced.makers}
        groups: list[UnitGroup] = []
        for numbers, units in alike.items():
            taken = {group.name for group in groups}
            groups.append(_group([places[i] for i in numbers], torch.tensor(units), makers, taken))
        for number, units in enumerate(alike.values()):
            self._whose[0, units], self._whose[1, units] = number, torch.arange(len(units))
        self._names = [group.name for group in groups]
        return sorted(groups, key=lambda group: names.index(group.slots[0].name))

    def _axes(self, dims: Sequence[Dim]) -> tuple[Axis, ...]:
        """Return the dimensions that units of groups lie along."""
        axes = (self._axis(dim) for dim in dims if len(dim) and not self._units.is_frozen(dim).all())
        return tuple(axis for axis in axes if axis.parts)

    def _axis(self, dim: Dim) -> Axis:
        groups, units = self._whose[:, self._units.find(dim)]
        numbers = [number for number in groups.unique().tolist() if number >= 0]
        return Axis(len(dim), tuple((self._names[n], units.where(groups == n, -1)) for n in numbers))

    def along(self, dim: Dim) -> list[str]:
        """Return the groups whose units lie along a dimension."""
        return [name for name, _ in self._axis(dim).parts] if not self._units.is_frozen(dim).all() else []

    def _work(self, flops: int, dims: Sequence[Dim]) -> Work:
        axes = self._axes(dims)
        return Work(flops // max(1, math.prod(axis.size for axis in axes)), axes)


def _group(
    places: Sequence[Place], units: Tensor, makers: Collection[tuple[str, int]], taken: Collection[str]
) -> UnitGroup:
    """Return a group, named by the first weight that makes its units and that names no other."""
    slots = tuple(Slot(name, dim, _numbers(units, roots)) for name, dim, roots, _ in places)
    likely = [(slot.name, slot.dim) in makers for slot in slots], [slot.dim == 0 for slot in slots], [True]
    order = [number for each in likely for number, is_so in enumerate(each[: len(slots)]) if is_so]
    names = [slot.name + (f"[{slot.dim}]" if slot.dim else "") for slot in slots]
    maker = next((number for number in order if names[number] not in taken), order[0])
    name, more = names[maker], 1
    while name in taken:  # units that lie in different parts of the same weights
        more += 1
        name = f"{names[maker]}#{more}"
    return UnitGroup(name, len(units), slots, maker)


def _numbers(units: Tensor, roots: Tensor) -> Tensor:
    """Return which of some units each index is, -1 where it is none."""
    found = torch.searchsorted(units, roots).clamp(max=len(units) - 1)
    return torch.where(units[found] == roots, found, -1)


def reasons(traced: Traced, names: Sequence[str]) -> dict[tuple[str, int], str]:
    """Return why dimensions are frozen: the first reason that was given for one of their units."""
    why: dict[int, str] = {}
    for ids, told in traced.units.reasons:
        for root in traced.units.find(ids).unique().tolist():  # type: ignore[no-untyped-call]
            why.setdefault(root, told)
    found = {}
    for name in names:
        for dim, ids in enumerate(traced.held[name]):
            if len(ids) and traced.units.is_frozen(ids).all():
                roots = traced.units.find(ids)
                found[name, dim] = next((why[r] for r in roots.tolist() if r in why), "it is given")
    return found
