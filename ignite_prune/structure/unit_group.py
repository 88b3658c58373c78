"""Where units lie: along a tensor's dimensions, and inside the program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    maker: int

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
        return UnitGroup(self.name, int(kept.sum()), tuple(slots), self.maker)


@dataclass(frozen=True, eq=False)
class Axis:
    """A dimension inside the program that units lie along.

    Args:
        size: how many indices.
        parts: the groups whose units lie along it, with the unit of each index, -1 where it belongs to none.
    """

    size: int
    parts: tuple[tuple[str, Tensor], ...]

    def stay(self, kept: Kept) -> Tensor:
        """Return which indices are left, bool."""
        found = torch.ones(self.size, dtype=torch.bool)
        for name, units in self.parts:
            found[units >= 0] &= kept[name][units[units >= 0]]
        return found

    def left(self, kept: Kept) -> int:
        """Return how many indices are left."""
        return int(self.stay(kept).sum())


@dataclass(frozen=True, eq=False)
class Work:
    """An operation's floating-point operations.

    Args:
        each: how many there are to one index of every axis.
        axes: what they grow with.
    """

    each: int
    axes: tuple[Axis, ...]

    def left(self, kept: Kept) -> int:
        """Return how many are left."""
        return self.each * math.prod(axis.left(kept) for axis in self.axes)
