"""Units of a regulariser: norms of units, and in-place scaling of weights by unit, through views where possible."""

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
    """Values per entry, which broadcast over the view of a weight with ``sizes``."""

    sizes: tuple[int, ...]
    values: Tensor


class WeightUnits(ABC):
    """A partition of the entries of one or more weights into units.

    Attributes:
        names: names of the weights.
    """

    names: tuple[str, ...]

    @abstractmethod
    def squares(self, weights: Weights) -> Tensor:
        """Return the sum of squares of each unit, at least float32, in the shape of ``values`` in :meth:`places`."""

    @abstractmethod
    def sizes(self, weights: Weights) -> Tensor:
        """Return the number of entries of each unit, broadcastable to the shape of :meth:`squares`."""

    @abstractmethod
    def places(self, name: str, weight: Tensor, values: Tensor, rest: float) -> Iterator[Place]:
        """Yield unit values expanded to entries of a weight; entries of no unit get ``rest``."""

    def norms(self, weights: Weights) -> Tensor:
        """Return the Euclidean norm of each unit."""
        return self.squares(weights).sqrt_()

    def scale_(self, name: str, weight: Tensor, factors: Tensor) -> None:
        """Multiply each unit of a weight by its factor, in place."""
        for sizes, values in self.places(name, weight, factors, rest=1.0):
            weight.view(sizes).mul_(values.to(weight.dtype))

    def add_(self, name: str, total: Tensor, weight: Tensor, factors: Tensor) -> None:
        """Add a weight, each unit times its factor, to ``total`` in place."""
        for sizes, values in self.places(name, weight, factors, rest=0.0):
            if total.itemsize < 4:  # 1 / norm overflows in half precision
                total.view(sizes).add_(weight.view(sizes) * values)
            else:
                total.view(sizes).addcmul_(weight.view(sizes), values.to(weight.dtype))


class GridUnits(WeightUnits):
    """Units of a pattern that are slices of a view: see :meth:`Pattern.grid <ignite_prune.pattern.Pattern.grid>`."""

    def __init__(self, name: str, pattern: Pattern, shape: tuple[int, ...]) -> None:
        grid = pattern.grid(shape)
        assert grid is not None
        self.names, self._pattern, self._sizes = (name,), pattern, grid.sizes
        self._entries = tuple(dim for dim in range(len(grid.sizes)) if dim not in grid.units)
        count = math.prod(grid.sizes[dim] for dim in self._entries)
        self._of_each = float(round(count * pattern.share))

    def _going(self, weight: Tensor) -> Tensor | None:
        """Return which entries of the view are pruned with their unit; None if all are."""
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
            # Broadcasting one value over few neighbours is slow.
            values = values.expand(*values.shape[:-1], sizes[-1]).flatten(-2)
            sizes = (*sizes[:-2], sizes[-2] * sizes[-1])
        yield Place(sizes, values)


class IndexedUnits(WeightUnits):
    """Units of any pattern, found at each call by :meth:`Pattern.spread`; slower than :class:`GridUnits`."""

    def __init__(self, name: str, pattern: Pattern) -> None:
        self.names, self._pattern = (name,), pattern

    def _index(self, weight: Tensor) -> tuple[Tensor, int]:
        """Return the unit of each entry, ``count`` for entries of no unit, and the number of units ``count``.

        Each bit of the unit numbers is spread as a mask, which needs log2(count) calls instead of one per unit.
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


class CoupledUnits(WeightUnits):
    """Units of a structure's group: coupled slices of the given weights.

    Args:
        group: the group.
        shapes: shapes of the weights to include, by name.
    """

    def __init__(self, group: UnitGroup, shapes: Mapping[str, torch.Size]) -> None:
        self._slots = tuple(slot for slot in group.slots if slot.name in shapes)
        self._count, self._shapes = group.size, shapes
        self.names = tuple(dict.fromkeys(slot.name for slot in self._slots))

    def _by_unit(self, units: Tensor, slices: Tensor) -> Tensor:
        """Return the sum of slice values per unit; slices that belong to no unit are dropped."""
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


def units_of(name: str, weight: Tensor, pattern: Pattern) -> WeightUnits:
    """Return the units of a pattern on one weight."""
    shape = tuple(weight.shape)
    return IndexedUnits(name, pattern) if pattern.grid(shape) is None else GridUnits(name, pattern, shape)
