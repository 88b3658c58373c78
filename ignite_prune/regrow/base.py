"""The records that moves speak in, and the two halves of every move: drop the smallest, grow the best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ignite_prune._utils.topk import keep_top


@dataclass(frozen=True)
class Connections:
    """One layer as a move sees it.

    Args:
        name: the parameter's name.
        weight: its values.
        mask: bool, True = active.
        evidence: what growing asks for, of the weight's shape: dense gradients, dense momentum.
        budget: how many entries the layer began with; None: as many as are active.
    """

    name: str
    weight: Tensor
    mask: Tensor
    evidence: Tensor | None = None
    budget: int | None = None

    @cached_property
    def active(self) -> int:
        """How many entries are active."""
        return int(self.mask.count_nonzero())


@dataclass(frozen=True)
class Rewired:
    """What a move makes of a layer.

    Args:
        survivors: bool, what was active and stays, values and all.
        mask: bool, the survivors and what has grown; a dropped entry that grows at once begins anew.
    """

    survivors: Tensor
    mask: Tensor


class Move(ABC):
    """A way to rewire layers. A value: frozen, stateless; randomness comes with each call."""

    def first(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mask to begin with, given one whose entries were drawn at random."""
        return mask

    def check(self, name: str, mask: Tensor) -> None:
        """Raise ValueError where the move cannot begin with a mask that the user gives."""

    @abstractmethod
    def __call__(self, layers: Sequence[Connections], fraction: float, generator: torch.Generator) -> list[Rewired]:
        """Drop ``fraction`` of the active entries and grow others.

        Args:
            layers: all that are rewired together.
            fraction: of the active entries, in [0, 1].
            generator: for random growth.

        Raises:
            ValueError: evidence is missing.
        """


def drop_smallest(weight: Tensor, mask: Tensor, count: int, active: int | None = None) -> Tensor:
    """Return ``mask`` without its ``count`` smallest weights; of equal ones the last are dropped.

    Args:
        weight: the values.
        mask: bool, True = active.
        count: how many go.
        active: how many are active, where that is known.

    Raises:
        ValueError: fewer than ``count`` are active.

    Example:
        >>> drop_smallest(torch.tensor([3.0, -1.0, 0.0, 2.0]), torch.tensor([True, True, False, True]), 1)
        tensor([ True, False, False,  True])
    """
    active = int(mask.count_nonzero()) if active is None else active
    if not 0 <= count <= active:
        raise ValueError(f"Argument count should be from 0 to {active}, the active entries, but given {count}")
    sizes = weight.detach().abs()
    return keep_top([lambda: sizes], [mask], [active], active - count)[0]


def grow_best(mask: Tensor, scores: Tensor, count: int, free: int | None = None) -> Tensor:
    """Return ``mask`` with the ``count`` inactive entries of the largest scores; of equal ones the first.

    Args:
        mask: bool, True = active.
        scores: of its shape.
        count: how many grow.
        free: how many are inactive, where that is known.

    Raises:
        ValueError: the layer is too full to grow so many.

    Example:
        >>> grow_best(torch.tensor([True, False, False]), torch.tensor([9.0, 1.0, 2.0]), 1)
        tensor([ True, False,  True])
    """
    free = mask.numel() - int(mask.count_nonzero()) if free is None else free
    if not 0 <= count <= free:
        raise ValueError(f"Argument count should be from 0 to {free}, the entries that are free, but given {count}")
    return keep_top([lambda: scores], [~mask], [free], count)[0].logical_or_(mask)
