"""Units of a regulariser: their norms, and weights scaled unit by unit, in place and without copies where views do."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ignite_prune.pattern import Pattern
from ignite_prune.regularise.squares import FEW, squares
from ignite_prune.structure import UnitGroup

Weights = Mapping[str, Tensor]


class Place(NamedTuple):
    """One number an entry, to be broadcast over a weight's view of ``sizes``."""

    sizes: tuple[int, ...]
    values: Tensor


class Units(ABC):
    """Units that lie over some weights.

    Attributes:
        names: of the weights.
    """

    names: tuple[str, ...]

    @abstractmethod
    def squares(self, weights: Weights) -> Tensor:
        """Return each unit's sum of squares, at least float32, in any shape that :meth:`places` takes back."""

    @abstractmethod
    def sizes(self, weights: Weights) -> Tensor:
        """Return how many entries each unit has, to be broadcast over :meth:`squares`."""

    @abstractmethod
    def places(self, name: str, weight: Tensor, values: Tensor, rest: float) -> Iterator[Place]:
        """Yield where a value a unit goes; ``rest`` is for entries of no unit."""

    def norms(self, weights: Weights) -> Tensor:
        """Return each unit's Euclidean norm."""
        return self.squares(weights).sqrt_()

    def scale_(self, name: str, weight: Tensor, factors: Tensor) -> None:
        """Multiply a weight by its units' factors."""
        for sizes, values in self.places(name, weight, factors, rest=1.0):
            weight.view(sizes).mul_(values.to(weight.dtype))

    def add_(self, name: str, total: Tensor, weight: Tensor, factors: Tensor) -> None:
        """Add a weight times its units' factors to ``total``."""
        for sizes, values in self.places(name, weight, factors, rest=0.0):
            if total.itemsize < 4:  # one over a small norm is infinite there
                total.view(sizes).add_(weight.view(sizes) * values)
            else:
                total.view(sizes).addcmul_(weight.view(sizes), values.to(weight.dtype))


class GridUnits(Units):
    """Units that a view of the weight shows: see :meth:`Pattern.grid <ignite_prune.pattern.Pattern.grid>`."""

    def __init__(self, name: str, pattern: Pattern, shape: tuple[int, ...]) -> None:
        grid = pattern.grid(shape)
        assert grid is not None
        self.names, self._pattern, self._sizes = (name,), pattern, grid.sizes
        self._entries = tuple(dim for dim in range(len(grid.sizes)) if dim not in grid.units)
        count = math.prod(grid.sizes[dim] for dim in self._entries)
        self._of_each = float(round(count * pattern.share))

    def _going(self, weight: Tensor) -> Tensor | None:
        """Which entries of the view a unit loses, where it is not all."""
        if self._pattern.share == 1:
            return None
        none = torch.zeros(self._pattern.group(weight.abs(), None).shape, dtype=torch.bool, device=weight.device)
        return ~self._pattern.spread(none, weight.abs(), None).view(self._sizes)

    def squares(self, weights: Weights) -> Tensor:
        weight = weights[self.names[0]].view(self._sizes)
        going = self._going(weights[self.names[0]])
        return squares(weight if going is None else weight * going, self._entries)

    def sizes(self, weights: Weights) -> Tensor:
        return torch.tensor(self._of_each)

    def places(self, name: str, weight: Tensor, values: Tensor, rest: float) -> Iterator[Place]:
        going, sizes = self._going(weight), self._sizes
        if going is not None:
            values = torch.where(going, values, rest)
        elif weight.is_contiguous() and 1 < sizes[-1] <= FEW and values.shape[-2:] == (*sizes[-2:-1], 1):
            values = values.expand(*values.shape[:-1], sizes[-1]).flatten(-2)  # a value for few neighbours is slow
            sizes = (*sizes[:-2], sizes[-2] * sizes[-1])
        yield Place(sizes, values)


class IndexedUnits(Units):
    """Units of any pattern, asked anew each time what it spreads: right for all, and slow."""

    def __init__(self, name: str, pattern: Pattern) -> None:
        self.names, self._pattern = (name,), pattern

    def _index(self, weight: Tensor) -> tuple[Tensor, int]:
        """Return the unit of each entry, ``count`` where it is of none, and how many units there are.

        The pattern is asked to spread masks that spell the units' numbers in bits.
        """
        scores = weight.abs()
        shape = self._pattern.group(scores, None).shape
        count = shape.numel()
        numbers = torch.arange(count, device=weight.device).view(shape)
        stays = self._pattern.spread(torch.zeros_like(numbers, dtype=torch.bool), scores, None)
        index = torch.zeros_like(stays, dtype=torch.int64)
        for bit in range(max(1, (count - 1).bit_length())):
            index |= self._pattern.spread((numbers >> bit) & 1 == 1, scores, None).long() << bit
        return index.masked_fill_(stays, count), count

    def squares(self, weights: Weights) -> Tensor:
        weight = weights[self.names[0]]
        index, count = self._index(weight)
        found = squares(weight, ()).flatten()
        return found.new_zeros(count + 1).index_add_(0, index.flatten(), found)[:count]

    def sizes(self, weights: Weights) -> Tensor:
        index, count = self._index(weights[self.names[0]])
        return index.flatten().bincount(minlength=count + 1)[:count]

    def places(self, name: str, weight: Tensor, values: Tensor, rest: float) -> Iterator[Place]:
        index, _ = self._index(weight)
        yield Place(tuple(weight.shape), torch.cat([values, values.new_tensor([rest])])[index])


class CoupledUnits(Units):
    """Units of a structure's group: all slices that go together, of the weights that are told."""

    def __init__(self, group: UnitGroup, shapes: Mapping[str, torch.Size]) -> None:
        self._slots = tuple(slot for slot in group.slots if slot.name in shapes)
        self._count, self._shapes = group.size, shapes
        self.names = tuple(dict.fromkeys(slot.name for slot in self._slots))

    def _by_unit(self, units: Tensor, slices: Tensor) -> Tensor:
        """Add up what the slices of a unit have; slices of none come last and are dropped."""
        index = torch.where(units >= 0, units, self._count).to(slices.device)
        return slices.new_zeros(self._count + 1).index_add_(0, index, slices)[: self._count]

    def squares(self, weights: Weights) -> Tensor:
        found = []
        for slot in self._slots:
            weight = weights[slot.name]
            others = tuple(dim for dim in range(weight.ndim) if dim != slot.dim)
            found.append(self._by_unit(slot.units, squares(weight, others).flatten()))
        return torch.stack(found).sum(0)

    def sizes(self, weights: Weights) -> Tensor:
        found = []
        for slot in self._slots:
            entries = self._shapes[slot.name].numel() // self._shapes[slot.name][slot.dim]
            found.append(self._by_unit(slot.units, torch.full(slot.units.shape, float(entries))))
        return torch.stack(found).sum(0)

    def places(self, name: str, weight: Tensor, values: Tensor, rest: float) -> Iterator[Place]:
        padded = torch.cat([values, values.new_tensor([rest])])
        for slot in self._slots:
            if slot.name == name:
                along = [-1 if dim == slot.dim else 1 for dim in range(weight.ndim)]
                yield Place(tuple(weight.shape), padded[slot.units.to(padded.device)].view(along))


def units_of(name: str, weight: Tensor, pattern: Pattern) -> Units:
    """Return a pattern's units over one weight."""
    shape = tuple(weight.shape)
    return IndexedUnits(name, pattern) if pattern.grid(shape) is None else GridUnits(name, pattern, shape)
