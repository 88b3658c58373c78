"""Unit ids: which indices of which dimensions must go together."""

from __future__ import annotations

import torch
from torch import Tensor

FIXED = 0
"""The id of every index that no weight decides: a batch's, a position's."""


class UnitIds:
    """Ids that can be tied: a union-find over whole arrays at a time.

    Every index of every dimension of a tensor has an id. Indices whose ids are tied are one unit: they go or stay
    together. A frozen unit stays. Id 0 is fixed: what is tied to it is frozen, and nothing else is tied by that.

    Attributes:
        reasons: what was frozen, and why, in order.

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

    def __len__(self) -> int:
        return self._size

    def new(self, size: int) -> Tensor:
        """Return ``size`` ids that no other index has."""
        first, self._size = self._size, self._size + size
        if self._size > len(self._parent):
            room = max(self._size, 2 * len(self._parent))
            parent, frozen = torch.arange(room), torch.zeros(room, dtype=torch.bool)
            parent[: len(self._parent)], frozen[: len(self._parent)] = self._parent, self._frozen
            self._parent, self._frozen = parent, frozen
        return torch.arange(first, self._size)

    def find(self, ids: Tensor) -> Tensor:
        """Return the smallest id of each one's unit."""
        found = self._parent[ids]
        while not torch.equal(above := self._parent[found], found):
            found = above
        self._parent[ids] = found  # a shorter way for those who ask next
        return found

    def is_frozen(self, ids: Tensor) -> Tensor:
        """Return which ids must stay, of their shape."""
        return self._frozen[self.find(ids)]

    def tie(self, first: Tensor, second: Tensor, why: str = "") -> None:
        """Tie ids, one by one.

        Args:
            first: ids of any shape.
            second: ids of a shape that broadcasts with it.
            why: told where a unit meets what is fixed.
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
        """Let the units of these ids stay."""
        free = ids[~self.is_frozen(ids)]
        if free.numel():
            self._frozen[self.find(free)] = True
            self.reasons.append((free, why))


class TieOnly(UnitIds):
    """The same ids for code whose results nobody reads: what goes together there has to, but nothing has to stay.

    Args:
        units: which.
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

    def tie(self, first: Tensor, second: Tensor, why: str = "") -> None:
        first, second = (self.find(each.flatten()) for each in torch.broadcast_tensors(first, second))  # type: ignore[no-untyped-call]
        free = (first != FIXED) & (second != FIXED)
        self._units.tie(first[free], second[free], why)

    def freeze(self, ids: Tensor, why: str) -> None:
        """Do nothing."""
