"""Which slices of a model's parameters go together, group by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune.select import named_parameters, near, unwrap
from ignite_prune.structure.follow import Traced, follow

Kept = Mapping[str, Tensor]
"""Which units of each group are kept, by the group's name: bool, ``(units,)``."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A dimension of a parameter or buffer that a group's units lie along.

    Args:
        name: of the parameter or buffer.
        dim: the dimension.
        units: ``(size,)``, the unit of each index; -1 where the index belongs to none of the group's.
    """

    name: str
    dim: int
    units: Tensor


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units that are alike: channels of one width, neurons of a layer, heads.

    Args:
        name: of the weight that makes them, and of the dimension where that is not 0.
        size: how many units.
        slots: where they lie.
        maker: which of the slots is that of the weight that makes them.
        whole: how many units there were before any were sliced off.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    maker: int
    whole: int

    def sliced(self, kept: Tensor, stay: Mapping[tuple[str, int], Tensor]) -> UnitGroup:
        """Return what is left of the group.

        Args:
            kept: which units, bool.
            stay: which indices of the slots' dimensions are left, bool; where nothing is told, all.
        """
        number = torch.where(kept, kept.cumsum(0) - 1, -1)
        slots = []
        for slot in self.slots:
            left = stay.get((slot.name, slot.dim))
            units = slot.units if left is None else slot.units[left]
            slots.append(Slot(slot.name, slot.dim, torch.where(units >= 0, number[units], -1)))
        return UnitGroup(self.name, int(kept.sum()), tuple(slots), self.maker, self.whole)


class Structure:
    """The units of a model: what can go as a whole, and what has to stay.

    Made by :func:`trace`.

    Attributes:
        groups: by name, in the order of the model's parameters.
        shapes: of every parameter and buffer that has units.
        frozen: why a parameter's dimension has to stay, by ``(name, dim)``.
        unknown: operations that are not known, and where they stand.
    """

    def __init__(
        self,
        groups: Sequence[UnitGroup],
        shapes: Mapping[str, torch.Size],
        frozen: Mapping[tuple[str, int], str],
        unknown: Sequence[str],
    ) -> None:
        self.groups = {group.name: group for group in groups}
        self.shapes, self.frozen, self.unknown = dict(shapes), dict(frozen), tuple(dict.fromkeys(unknown))

    def __iter__(self) -> Iterator[UnitGroup]:
        return iter(self.groups.values())

    def __len__(self) -> int:
        return len(self.groups)

    def indices(self, kept: Kept) -> dict[str, dict[int, Tensor]]:
        """Return which indices of which dimensions stay, of every parameter and buffer that loses some."""
        found: dict[str, dict[int, Tensor]] = {}
        for name, dims in self._stay(kept).items():
            cut = {dim: stay.nonzero().squeeze(1) for dim, stay in dims.items() if not stay.all()}
            if cut:
                found[name] = cut
        return found

    def sliced(self, kept: Kept) -> Structure:
        """Return the structure of the model that is left."""
        stay = {(name, dim): left for name, dims in self._stay(kept).items() for dim, left in dims.items()}
        groups = [group.sliced(kept.get(group.name, torch.ones(group.size, dtype=torch.bool)), stay) for group in self]
        shapes = {
            name: torch.Size(int(stay[name, d].sum()) if (name, d) in stay else size for d, size in enumerate(shape))
            for name, shape in self.shapes.items()
        }
        return Structure(groups, shapes, self.frozen, self.unknown)

    def masks(self, kept: Kept) -> dict[str, Tensor]:
        """Return masks, True = kept, of every tensor that has units: they cover all that goes with a unit."""
        masks = {}
        for name, dims in self._stay(kept).items():
            mask = torch.ones(self.shapes[name], dtype=torch.bool)
            for dim, stay in dims.items():
                mask &= stay.view([-1 if d == dim else 1 for d in range(mask.dim())])
            masks[name] = mask
        return masks

    def kept(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return which units some masks keep.

        Raises:
            ValueError: masks that are not made of whole units.
        """
        unknown = set(masks) - set(self.shapes)
        if unknown:
            raise ValueError(f"The model has no parameter {min(unknown)!r}; {near(min(unknown), list(self.shapes))}")
        kept = {group.name: self._alive(group, masks) for group in self}
        for name, mask in self.masks(kept).items():
            if name in masks and not torch.equal(mask, masks[name].cpu()):
                raise ValueError(
                    f"The mask of {name!r} is not made of whole units; prune with PruneHandler(structure=...)"
                )
        return kept

    def kept_by(self, indices: Mapping[str, Mapping[int, Tensor]]) -> dict[str, Tensor]:
        """Return which units are left where these indices of the tensors are.

        Raises:
            ValueError: indices that are not made of whole units.
        """
        kept = {}
        for group in self:
            kept[group.name] = torch.ones(group.size, dtype=torch.bool)
            for slot in group.slots:
                stay = indices.get(slot.name, {}).get(slot.dim)
                if stay is not None:
                    gone = torch.ones(len(slot.units), dtype=torch.bool)
                    gone[stay] = False
                    kept[group.name][slot.units[gone & (slot.units >= 0)]] = False
        mine = {name: {d: i.tolist() for d, i in dims.items()} for name, dims in self.indices(kept).items()}
        if mine != {name: {d: i.tolist() for d, i in dims.items()} for name, dims in indices.items() if dims}:
            raise ValueError("The checkpoint's kept indices are not whole units of this model's structure")
        return kept

    def _alive(self, group: UnitGroup, masks: Mapping[str, Tensor]) -> Tensor:
        """A unit is gone where some parameter has lost all its slices."""
        alive = torch.ones(group.size, dtype=torch.bool)
        for slot in group.slots:
            if slot.name in masks:
                mask = masks[slot.name].cpu()
                lives = mask.movedim(slot.dim, 0).reshape(mask.shape[slot.dim], -1).any(1)
                mine = slot.units >= 0
                here = torch.zeros(group.size, dtype=torch.bool)
                here[slot.units[mine & lives]] = True
                alive &= here
        return alive

    def _stay(self, kept: Kept) -> dict[str, dict[int, Tensor]]:
        unknown = set(kept) - set(self.groups)
        if unknown:
            raise ValueError(f"There is no group {sorted(unknown)[0]!r}; there are {', '.join(self.groups)}")
        found: dict[str, dict[int, Tensor]] = {}
        for name, units in kept.items():
            for slot in self.groups[name].slots:
                dims = found.setdefault(slot.name, {})
                stay = dims.setdefault(slot.dim, torch.ones(len(slot.units), dtype=torch.bool))
                mine = slot.units >= 0
                stay[mine] &= units.cpu()[slot.units[mine]]
        return found

    def __str__(self) -> str:
        lines = [f"{len(self)} groups of coupled units"]
        for group in self:
            lines.append(f"  {group.name}: {group.size} units")
            for slot in group.slots:
                mine = int((slot.units >= 0).sum())
                each = f" × {mine // group.size}" if mine != group.size else ""
                lines.append(f"      {slot.name}[{slot.dim}]{each}")
        if self.frozen:
            lines.append("frozen")
            lines += [f"  {name}[{dim}]: {why}" for (name, dim), why in self.frozen.items()]
        return "\n".join(lines)


def trace(
    model: nn.Module, example_inputs: Any, *, keep: Sequence[str] = (), tie: Sequence[Sequence[str]] = ()
) -> Structure:
    """Find which slices of a model's parameters have to go together.

    The model is exported by ``torch.export`` in eval mode, from a copy; every operation is followed, and one that is
    not known freezes what it touches.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        example_inputs: what the model takes: a tensor, a tuple of arguments, or a dict of keyword arguments.
        keep: layers or parameters, by name or glob, whose units have to stay.
        tie: pairs (or more) of parameters whose units have to go together, ``"name"`` for dimension 0, ``"name[1]"``
            for another.

    Returns:
        The structure; it prints as a table.

    Raises:
        TypeError: ``keep`` or ``tie`` is not of that form.
        ValueError: the model cannot be exported, or does not take these inputs; a name that the model does not have,
            dimensions of different sizes to tie. What cannot be exported can be told by hand: :func:`declare`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> structure = trace(net, torch.zeros(1, 4))
        >>> [(group.name, group.size) for group in structure]
        [('0.weight', 8)]
    """
    model = unwrap(model)
    args, kwargs = as_arguments(example_inputs)
    places = [[read_place(name, model) for name in each] for each in _several(tie)]
    for each in places:
        _one_size(each, shapes_of(model))
    kept = [name for rule in _strings(keep) for name in _matching(rule, model)]
    traced = follow(model, args, kwargs)
    for (first, dim), *others in places:
        for name, other in others:
            traced.units.tie(traced.held[first][dim], traced.held[name][other], "it is tied by hand")
    for name in kept:
        traced.units.freeze(traced.held[name][0], "it is kept by hand")
    shapes = shapes_of(model)
    groups = _groups(traced, list(shapes))
    return Structure(groups, shapes, _reasons(traced, list(named_parameters(model))), traced.unknown)


def declare(model: nn.Module, groups: Sequence[Mapping[str, int]]) -> Structure:
    """Return a structure that is told by hand, for a model that cannot be exported.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        groups: for each its parameters and buffers by name, with the dimension that the units lie along, the weight
            that makes them first. ``shrink`` runs the sliced model and compares it, so that what is forgotten is found.

    Raises:
        TypeError: groups of another form.
        ValueError: a name that the model does not have, dimensions of different sizes.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> structure = declare(net, [{"0.weight": 0, "0.bias": 0, "2.weight": 1}])
        >>> structure.groups["0.weight"].size
        8
    """
    model = unwrap(model)
    shapes = shapes_of(model)
    made = []
    for group in groups:
        if not isinstance(group, Mapping) or not group or not all(type(dim) is int for dim in group.values()):
            raise TypeError(f"Argument groups should hold mappings of names and dimensions, but given {group!r:.80}")
        places = [read_place(f"{name}[{dim}]", model) for name, dim in group.items()]
        size = _one_size(places, shapes)
        slots = tuple(Slot(name, dim, torch.arange(size)) for name, dim in places)
        made.append(UnitGroup(places[0][0], size, slots, 0, size))
    return Structure(made, shapes, {}, ())


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a model's parameters and buffers, tied ones once."""
    return {name: tensor.shape for name, tensor in {**named_parameters(model), **dict(model.named_buffers())}.items()}


def read_place(text: str, model: nn.Module) -> tuple[str, int]:
    """Return name and dimension of ``"name"`` or ``"name[dim]"``.

    Raises:
        TypeError: not a string.
        ValueError: the model has no such tensor, or it has no such dimension.
    """
    if not isinstance(text, str):
        raise TypeError(f"A parameter's dimension should be told as 'name' or 'name[dim]', but given {text!r}")
    name, _, dim = text.removesuffix("]").partition("[")
    shapes = shapes_of(model)
    if name not in shapes:
        raise ValueError(f"The model has no parameter {name!r}; {near(name, list(shapes))}")
    number = int(dim) if dim.lstrip("-").isdigit() else 0
    if not -len(shapes[name]) <= number < len(shapes[name]):
        raise ValueError(f"Parameter {name!r} has {len(shapes[name])} dimensions, and no dimension {number}")
    return name, number % len(shapes[name])


def _strings(values: Any) -> list[str]:
    listed = [values] if isinstance(values, str) else list(values)
    if not all(isinstance(each, str) for each in listed):
        raise TypeError(f"Argument keep should be names, but given {values!r:.80}")
    return listed


def _several(values: Any) -> list[Sequence[str]]:
    listed = list(values)
    if not all(isinstance(each, Sequence) and not isinstance(each, str) and len(each) > 1 for each in listed):
        raise TypeError(f"Argument tie should be pairs of names, but given {values!r:.80}")
    return listed


def _matching(rule: str, model: nn.Module) -> list[str]:
    names = list(named_parameters(model))
    found = [
        name
        for name in names
        if fnmatchcase(name, rule) or name.startswith(f"{rule}.") or fnmatchcase(name, f"{rule}.*")
    ]
    if not found:
        raise ValueError(f"Argument keep: {rule!r} matches no parameter; {near(rule, names)}")
    return found


def _one_size(places: Sequence[tuple[str, int]], shapes: Mapping[str, torch.Size]) -> int:
    sizes = {f"{name}[{dim}]": shapes[name][dim] for name, dim in places}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Dimensions that go together should be of one size, but given {sizes}")
    return next(iter(sizes.values()))


def as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TypeError(f"Argument example_inputs should be a tensor, a tuple or a dict, but given {type(example_inputs)}")


def _groups(traced: Traced, names: Sequence[str]) -> list[UnitGroup]:
    """Units that lie along the same dimensions make a group."""
    places = [
        (name, dim, traced.units.find(ids), ~traced.units.is_frozen(ids))
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
    groups = [_group(places, numbers, torch.tensor(roots)) for numbers, roots in alike.items()]
    return sorted(groups, key=lambda group: names.index(group.slots[0].name))


def _group(places: Sequence[tuple[str, int, Tensor, Tensor]], numbers: Sequence[int], units: Tensor) -> UnitGroup:
    slots = []
    for number in numbers:
        name, dim, roots, _ = places[number]
        found = torch.searchsorted(units, roots).clamp(max=len(units) - 1)
        slots.append(Slot(name, dim, torch.where(units[found] == roots, found, -1)))
    maker = next((i for i, slot in enumerate(slots) if slot.dim == 0), 0)
    name = slots[maker].name + (f"[{slots[maker].dim}]" if slots[maker].dim else "")
    return UnitGroup(name, len(units), tuple(slots), maker, len(units))


def _reasons(traced: Traced, names: Sequence[str]) -> dict[tuple[str, int], str]:
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
