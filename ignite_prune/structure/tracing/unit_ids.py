"""Union-find of unit ids: which indices of which dimensions can only be removed together.

Coupling is an equivalence between single indices, not between dimensions: after ``cat`` half of a dimension belongs to
one layer, and in a grouped convolution every group loses the same positions. So each index has an id, and ``tie``
merges sets of ids. A model has millions of indices, so all operations work on whole tensors of ids: ``tie`` points the
larger root of each pair to the smaller one by ``scatter_reduce_("amin")``, which is independent of the order of pairs,
and repeats until the roots agree. The smallest id of a set is its root, which makes groups and their names the same
on every run and rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIXED = 0
"""Id of every index that depends on no weight: of a batch, of a position."""


class UnitIds:
    """Union-find over unit ids that works on whole tensors of ids.

    Every index of every dimension of a tensor has an id. Indices whose ids are tied form one unit, which is kept or
    removed as a whole. A frozen unit is always kept. Ids tied to id 0 (``FIXED``) are frozen, not tied to each other.

    Attributes:
        reasons: frozen ids with the reason, in order.
        given: number of the first id that is of no parameter or buffer, but of a tensor made in the graph.

    Example:
        >>> units = UnitIds()
        >>> a, b = units.new(3), units.new(3)
        >>> units.tie(a, b)
        >>> torch.equal(units.find(a), units.find(b))
        True
        >>> units.freeze(a[:1], "it is the output")
        >>> units.is_frozen(b).tolist()
        [True, False, False]
    """

    def __init__(self) -> None:
        self._parent = torch.zeros(1, dtype=torch.int64)
        self._frozen = torch.ones(1, dtype=torch.bool)
        self._size = 1
        self.reasons: list[tuple[Tensor, str]] = []
        self.given = 1

    def __len__(self) -> int:
        return self._size

    def copy(self) -> UnitIds:
        """Return a copy, whose ties and frozen units are its own."""
        found = UnitIds()
        found._parent, found._frozen, found._size = self._parent.clone(), self._frozen.clone(), self._size
        found.reasons, found.given = list(self.reasons), self.given
        return found

    def new(self, size: int) -> Tensor:
        """Return ``size`` unused ids."""
        first, self._size = self._size, self._size + size
        if self._size > len(self._parent):
            room = max(self._size, 2 * len(self._parent))
            parent, frozen = torch.arange(room), torch.zeros(room, dtype=torch.bool)
            parent[: len(self._parent)], frozen[: len(self._parent)] = self._parent, self._frozen
            self._parent, self._frozen = parent, frozen
        return torch.arange(first, self._size)

    def find(self, ids: Tensor) -> Tensor:
        """Return the root of each id: the smallest id of its unit."""
        found = self._parent[ids]
        while not torch.equal(above := self._parent[found], found):
            found = above
        self._parent[ids] = found  # path compression
        return found

    def is_frozen(self, ids: Tensor) -> Tensor:
        """Return which ids are frozen, in their shape."""
        return self._frozen[self.find(ids)]

    def is_open(self, ids: Tensor) -> bool:
        """Return whether all ids are of tensors made in the graph and tied to no parameter: the root is the least."""
        return bool((self.find(ids) >= self.given).all())

    def tie(self, first: Tensor, second: Tensor, why: str = "") -> None:
        """Tie ids elementwise.

        Args:
            first: ids of any shape.
            second: ids of a shape that broadcasts with it.
            why: reason recorded for units that are tied to a fixed index, and so frozen.
        """
        first, second = (self.find(each.flatten()) for each in torch.broadcast_tensors(first, second))  # type: ignore[no-untyped-call]
        fixed = (first == FIXED) | (second == FIXED)
        if fixed.any():
            self.freeze(torch.maximum(first, second)[fixed], why)
            first, second = first[~fixed], second[~fixed]
        tied = torch.cat([first, second])
        while not torch.equal(first, second):
            self._parent.scatter_reduce_(0, torch.maximum(first, second), torch.minimum(first, second), "amin")
            first, second = self.find(first), self.find(second)
        self._frozen[self.find(tied[self._frozen[tied]])] = True

    def freeze(self, ids: Tensor, why: str) -> None:
        """Freeze the units of these ids."""
        free = ids[~self.is_frozen(ids)]
        if free.numel():
            self._frozen[self.find(free)] = True
            self.reasons.append((free, why))


class TieOnly(UnitIds):
    """View of a UnitIds that ties but never freezes, for code whose results are not used.

    Dead code still runs, so coupled dimensions in it have to match; but its results may have any width.

    Args:
        units: the ids to tie.
    """

    def __init__(self, units: UnitIds) -> None:
        self._units = units

    def __len__(self) -> int:
        return len(self._units)

    def new(self, size: int) -> Tensor:
        return self._units.new(size)

    def find(self, ids: Tensor) -> Tensor:
        return self._units.find(ids)

    def is_frozen(self, ids: Tensor) -> Tensor:
        return self._units.is_frozen(ids)

    def is_open(self, ids: Tensor) -> bool:
        return self._units.is_open(ids)

    def tie(self, first: Tensor, second: Tensor, why: str = "") -> None:
        first, second = (self.find(each.flatten()) for each in torch.broadcast_tensors(first, second))  # type: ignore[no-untyped-call]
        free = (first != FIXED) & (second != FIXED)
        self._units.tie(first[free], second[free], why)

    def freeze(self, ids: Tensor, why: str) -> None:
        """Do nothing."""
