"""The one interface every allocation has, and the two records it speaks in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """One parameter as an allocation sees it.

    Args:
        name: the parameter's name.
        shape: its shape.
        units: how many units its pattern cuts it into.
        scores: gives the units' scores, any shape of ``units`` elements; may be computed anew at each call.
        alive: bool, shaped as the scores: which units can still be pruned; None where all can.
        living: how many are alive.
    """

    name: str
    shape: tuple[int, ...]
    units: int
    scores: Callable[[], Tensor]
    alive: Tensor | None
    living: int


@dataclass(frozen=True)
class Pool:
    """Layers whose units compete: the best ``keep`` of all of them stay, at least ``floors[i]`` in layer i."""

    layers: tuple[Layer, ...]
    keep: int
    floors: tuple[int, ...] = ()


class Allocation(ABC):
    """A way to divide a sparsity: layers and a pruned fraction of their units in, pools with whole numbers out.

    Attributes:
        sets_own: it finds its own sparsity in the scores; the target, if there is one, is only a ceiling.
    """

    sets_own: bool = False

    @abstractmethod
    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        """Return pools that hold every layer once."""


def once(function: Callable[[], T]) -> Callable[[], T]:
    """Return a function that computes ``function()`` at the first call and holds the answer."""
    answer: list[T] = []

    def held() -> T:
        if not answer:
            answer.append(function())
        return answer[0]

    return held
