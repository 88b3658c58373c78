"""``declare``: a model's structure as stated by the user, for models that cannot be exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune.core.selection import named_parameters, unwrap
from ignite_prune.structure.kept_indices import value_at
from ignite_prune.structure.structure import Structure
from ignite_prune.structure.tracing.settling import shapes_of
from ignite_prune.structure.tracing.trace import read_place
from ignite_prune.structure.unit_group import Axis, Slot, UnitGroup


@dataclass(frozen=True)
class Units:
    """How units lie along a dimension: in ``parts`` in a row, with ``each`` indices of every unit in each part.

    ====================================================  ====================================
    gates of an LSTM or GRU cell                          ``Units(0, parts=4)``, ``Units(0, parts=3)``
    heads of a projection                                 ``Units(0, each=head_dim)``
    query, key and value in one weight                    ``Units(0, parts=3, each=head_dim)``
    the same, interleaved head by head (BLOOM, GPT-NeoX)  ``Units(0, each=3 * head_dim)``
    queries that share a key head                         ``Units(0, each=head_dim * queries_per_key)``
    halves of a gated linear unit                         ``Units(0, parts=2)``
    inputs that are a flattened ``(channels, h, w)`` map  ``Units(1, each=h * w)``
    inputs that are a flattened ``(h, w, channels)`` map  ``Units(1, parts=h * w)``
    inputs that are a concatenation                       ``Units(1, start=64, stop=96)``
    ====================================================  ====================================

    Args:
        dim: the dimension.
        parts: number of parts, each of which has all units in the same order.
        each: number of consecutive indices of a unit in each part.
        start: first index that belongs to units.
        stop: first index after ``start`` that does not; None: the end.

    Raises:
        TypeError, ValueError: a number is not an int, or out of range.

    Example:
        >>> Units(parts=2, each=2).numbers(8)
        tensor([0, 0, 1, 1, 0, 0, 1, 1])
    """

    dim: int = 0
    parts: int = 1
    each: int = 1
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("dim", None), ("parts", 1), ("each", 1), ("start", 0), ("stop", self.start)):
            value = getattr(self, name)
            if name == "stop" and value is None:
                continue
            if type(value) is not int:
                raise TypeError(f"Argument {name} of Units should be an int, but given {value!r}")
            if least is not None and value < least:
                raise ValueError(f"Argument {name} of Units should be at least {least}, but given {value}")

    def numbers(self, size: int) -> Tensor:
        """Return the unit of every index of a dimension of this size, ``(size,)``; -1 where it belongs to none.

        Raises:
            ValueError: the size is not a multiple of ``parts · each``.
        """
        stop = size if self.stop is None else self.stop
        count, rest = divmod(stop - self.start, self.parts * self.each)
        if rest or count < 1 or stop > size:
            raise ValueError(f"{self} does not fit {size} indices: {self.parts} × {self.each} × units are needed")
        found = torch.full((size,), -1)
        found[self.start : stop] = torch.arange(count).repeat_interleave(self.each).repeat(self.parts)
        return found


Places = int | Units | Sequence[int | Units]
"""Where units lie in a tensor: a dimension with one index a unit, :class:`Units`, or several of these."""


def declare(
    model: nn.Module,
    groups: Sequence[Mapping[str, Places]],
    *,
    attributes: Mapping[str, str] = MappingProxyType({}),
) -> Structure:
    """Return a structure with the given groups of coupled units, for a model that ``torch.export`` cannot export.

    Everything that is not declared keeps its size. ``shrink`` compares the sliced model with the masked one, which
    reveals a forgotten tensor.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``.
        groups: one mapping per group, from the names of its parameters and buffers to where its units lie in them: the
            dimension, :class:`Units`, or a list of these. The weight that produces the units comes first.
        attributes: attributes of modules (or of their configs) that hold a multiple of a group's number of units, and
            the name of the group: ``{"attention.num_heads": "attention.query.weight"}``. Slicing updates them.

    Raises:
        TypeError: ``groups`` or ``attributes`` does not have that form.
        ValueError: a name is unknown, or the numbers of units in a group differ.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> structure = declare(net, [{"0.weight": 0, "0.bias": 0, "2.weight": 1}])
        >>> structure.groups["0.weight"].size
        8

        A gated linear unit: both halves of the first layer lose the same units.

        >>> class Gated(nn.Sequential):
        ...     def forward(self, x):
        ...         return self[1](nn.functional.glu(self[0](x)))
        >>> gated = Gated(nn.Linear(4, 16), nn.Linear(8, 2))
        >>> halves = Units(0, parts=2)
        >>> declare(gated, [{"0.weight": halves, "0.bias": halves, "1.weight": 1}]).groups["0.weight"].size
        8
    """
    model = unwrap(model)
    shapes = shapes_of(model)
    made: list[UnitGroup] = []
    for group in groups:
        if not isinstance(group, Mapping) or not group:
            raise TypeError(f"Argument groups should hold mappings of names and dimensions, but given {group!r:.80}")
        made.append(_group(group, model, {each.name for each in made}))
    _check_apart(made)
    structure = Structure(made, shapes, list(named_parameters(model)))
    held = dict(_attribute(model, where, structure.named(name)) for where, name in attributes.items())
    return Structure(made, shapes, list(named_parameters(model)), attributes=held)


def _group(given: Mapping[str, Places], model: nn.Module, taken: set[str]) -> UnitGroup:
    shapes, slots = shapes_of(model), list[Slot]()
    for name, places in given.items():
        for each in places if isinstance(places, Sequence) and not isinstance(places, str) else (places,):
            if not isinstance(each, Units) and type(each) is not int:
                raise TypeError(
                    f"Argument groups[...][{name!r}] should be a dimension or Units(...), but given {each!r}"
                )
            units = Units(each) if isinstance(each, int) else each
            tensor, dim = read_place(f"{name}[{units.dim}]", model)
            slots.append(_slot(tensor, dim, units, shapes[tensor][dim]))
    counts = {f"{slot.name}[{slot.dim}]": int(slot.units.max()) + 1 for slot in slots}
    if len(set(counts.values())) > 1:
        raise ValueError(f"Dimensions whose units go together should be of one size in units, but given {counts}")
    first = slots[0]
    name = first.name + (f"[{first.dim}]" if first.dim and first.name in taken else "")
    return UnitGroup(name, int(first.units.max()) + 1, tuple(_joined(slots)), 0)


def _slot(name: str, dim: int, units: Units, size: int) -> Slot:
    try:
        return Slot(name, dim, units.numbers(size))
    except ValueError as error:
        raise ValueError(f"Parameter {name!r}, dimension {dim}: {error}") from None


def _joined(slots: Sequence[Slot]) -> list[Slot]:
    """Return one slot for each dimension, of slots that may have different parts of one."""
    found: dict[tuple[str, int], Tensor] = {}
    for slot in slots:
        before = found.get((slot.name, slot.dim), torch.full_like(slot.units, -1))
        if ((before >= 0) & (slot.units >= 0)).any():
            raise ValueError(f"Two Units of one group have the same indices of {slot.name!r}, dimension {slot.dim}")
        found[slot.name, slot.dim] = torch.maximum(before, slot.units)
    return [Slot(name, dim, units) for (name, dim), units in found.items()]


def _check_apart(groups: Sequence[UnitGroup]) -> None:
    """Raise if an index of a tensor belongs to units of two groups."""
    taken: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        for slot in group.slots:
            before = taken.get((slot.name, slot.dim), torch.zeros(len(slot.units), dtype=torch.bool))
            if (before & (slot.units >= 0)).any():
                raise ValueError(f"Two groups have the same indices of {slot.name!r}, dimension {slot.dim}")
            taken[slot.name, slot.dim] = before | (slot.units >= 0)


def _attribute(model: nn.Module, where: Any, group: UnitGroup) -> tuple[tuple[str, str], Axis]:
    """Return the place of an attribute, and its value as an axis of a group's units."""
    if not isinstance(where, str):
        raise TypeError(f"Argument attributes should map paths of attributes to names of groups, but given {where!r}")
    path, _, name = where.rpartition(".")
    try:
        value = value_at(model, where)
    except AttributeError:
        raise ValueError(f"Argument attributes: the model has no attribute {where!r}") from None
    if type(value) is not int or value < 1 or value % group.size:
        raise ValueError(
            f"Argument attributes: {where!r} should hold a multiple of the {group.size} units of {group.name!r}, but "
            f"it is {value!r}"
        )
    return (path, name), Axis(value, ((group.name, torch.arange(group.size).repeat_interleave(value // group.size)),))
