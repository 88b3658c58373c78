"""Base class of allocations, and the records that they take and return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """One parameter, as input of an allocation.

    Args:
        name: the parameter's name.
        shape: its shape.
        units: number of units of its pattern.
        scores: returns the unit scores, a tensor of ``units`` elements; may compute them at each call.
        alive: which units can still be pruned, bool in the shape of the scores; None if all can.
        living: number of alive units.
        kind: equal for layers whose units are alike, of a structure's groups; None: see :class:`.Isomorphic`.
    """

    name: str
    shape: tuple[int, ...]
    units: int
    scores: Callable[[], Tensor]
    alive: Tensor | None
    living: int
    kind: Hashable = None


@dataclass(frozen=True)
class Pool:
    """Layers whose units are ranked together: the best ``keep`` are kept, at least ``floors[i]`` of layer i."""

    layers: tuple[Layer, ...]
    keep: int
    floors: tuple[int, ...] = ()


class Allocation(ABC):
    """A rule that divides a sparsity over layers: it returns pools of layers with whole numbers of kept units.

    Attributes:
        sets_own: the sparsity follows from the scores, so that the target is only an upper bound.
    """

    sets_own: bool = False

    @abstractmethod
    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        """Return pools that contain each layer once, for a pruned fraction ``sparsity`` of all units."""


def once(function: Callable[[], T]) -> Callable[[], T]:
    """Return a function that calls ``function()`` at the first call and caches its result."""
    result: list[T] = []

    def cached() -> T:
        if not result:
            result.append(function())
        return result[0]

    return cached
