"""Groups of units, and the dimensions of tensors and of intermediate results that they index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Kept = Mapping[str, Tensor]
"""Kept units by group name: bool tensors, ``(units,)``."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A dimension of a parameter or buffer whose indices belong to units of a group.

    Args:
        name: name of the parameter or buffer.
        dim: the dimension.
        units: ``(size,)``, the unit of each index; -1 where the index belongs to no unit of the group.
    """

    name: str
    dim: int
    units: Tensor

    def told(self, size: int) -> str:
        """Return the dimension as text, with the number of indices of each of ``size`` units if it is not 1."""
        within = int((self.units >= 0).sum())
        return f"{self.name}[{self.dim}]" + (f" × {within // size}" if within != size else "")


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units of the same kind: channels of one width, neurons of a layer, attention heads.

    Args:
        name: name of the weight that produces the units, followed by its dimension if that is not 0.
        size: number of units.
        slots: the dimensions of parameters and buffers that the units index.
        maker: index in ``slots`` of the weight that produces the units.
        multiple: the number of units left should be a multiple of this, as a kernel of torch needs it.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    maker: int
    multiple: int = 1

    def __str__(self) -> str:
        many = f" in multiples of {self.multiple}" if self.multiple > 1 else ""
        lines = [f"{self.name}: {self.size} units{many}", *(f"  {slot.told(self.size)}" for slot in self.slots)]
        return "\n".join(lines)

    def sliced(self, kept: Tensor, stay: Mapping[tuple[str, int], Tensor]) -> UnitGroup:
        """Return the group with only the kept units.

        Args:
            kept: the kept units, bool.
            stay: the kept indices by ``(name, dim)`` of a slot, bool; slots not given keep all indices.
        """
        number = torch.where(kept, kept.cumsum(0) - 1, -1)
        slots = []
        for slot in self.slots:
            left = stay.get((slot.name, slot.dim))
            units = slot.units if left is None else slot.units[left]
            slots.append(Slot(slot.name, slot.dim, torch.where(units >= 0, number[units], -1)))
        return UnitGroup(self.name, int(kept.sum()), tuple(slots), self.maker, self.multiple)


@dataclass(frozen=True, eq=False)
class Axis:
    """A dimension of an intermediate result whose indices belong to units.

    Args:
        size: number of indices.
        parts: the groups that it belongs to, each with the unit of every index; -1 where the index belongs to none.
    """

    size: int
    parts: tuple[tuple[str, Tensor], ...]

    def stay(self, kept: Kept) -> Tensor:
        """Return which indices are kept, bool."""
        found = torch.ones(self.size, dtype=torch.bool)
        for name, units in self.parts:
            found[units >= 0] &= kept[name][units[units >= 0]]
        return found

    def left(self, kept: Kept) -> int:
        """Return the number of kept indices."""
        return int(self.stay(kept).sum())


@dataclass(frozen=True, eq=False)
class Work:
    """The FLOPs of one operation, as a product over axes.

    Args:
        each: FLOPs per combination of one index of every axis.
        axes: the axes whose sizes multiply ``each``.
    """

    each: int
    axes: tuple[Axis, ...]

    def left(self, kept: Kept) -> int:
        """Return the FLOPs with only the given units kept."""
        return self.each * math.prod(axis.left(kept) for axis in self.axes)


def units_alive(group: UnitGroup, masks: Mapping[str, Tensor]) -> Tensor:
    """Return which units are kept: a unit is pruned once all its slices of some parameter are."""
    alive = torch.ones(group.size, dtype=torch.bool)
    for slot in group.slots:
        if slot.name in masks:
            mask = masks[slot.name].cpu()
            nonzero = mask.movedim(slot.dim, 0).reshape(mask.shape[slot.dim], -1).any(1)
            in_group = slot.units >= 0
            here = torch.zeros(group.size, dtype=torch.bool)
            here[slot.units[in_group & nonzero]] = True
            alive &= here
    return alive
