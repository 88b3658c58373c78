"""Base class of drop-and-grow rules, their records, and the two steps they share: drop and grow."""

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
    """Weight, mask and growth evidence of one layer, as the input of a drop-and-grow move.

    Args:
        name: the parameter's name.
        weight: its values.
        mask: bool, True = active.
        evidence: the tensor that growth scores are computed from, of the weight's shape: dense gradients or momentum.
        budget: number of active entries at the start of training; None: the current number.
    """

    name: str
    weight: Tensor
    mask: Tensor
    evidence: Tensor | None = None
    budget: int | None = None

    @cached_property
    def active(self) -> int:
        """Number of active entries."""
        return int(self.mask.count_nonzero())


@dataclass(frozen=True)
class Rewired:
    """One layer, as result of a move.

    Args:
        survivors: bool, the entries that were active and stay active; they keep their values.
        mask: bool, the survivors and the grown entries; an entry that is dropped and grown again starts from 0.
    """

    survivors: Tensor
    mask: Tensor


class Move(ABC):
    """A drop-and-grow rule. Frozen and stateless; each call takes the random generator."""

    def first(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return the initial mask, given a mask with randomly drawn entries."""
        return mask

    def check(self, name: str, mask: Tensor) -> None:
        """Raise ValueError if the move cannot start from this mask, which the user has given."""

    @abstractmethod
    def __call__(self, layers: Sequence[Connections], fraction: float, generator: torch.Generator) -> list[Rewired]:
        """Drop ``fraction`` of the active entries and grow others.

        Args:
            layers: all layers that are rewired together.
            fraction: fraction of the active entries, in [0, 1].
            generator: generator for random growth.

        Raises:
            ValueError: evidence is missing.
        """


def drop_smallest(weight: Tensor, mask: Tensor, count: int, active: int | None = None) -> Tensor:
    """Return ``mask`` without its ``count`` smallest weights; of equal ones the last are dropped.

    Args:
        weight: the values.
        mask: bool, True = active.
        count: number of entries to drop.
        active: number of active entries; None: counted here.

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
        scores: scores of the entries, of the mask's shape.
        count: number of entries to grow.
        free: number of inactive entries; None: counted here.

    Raises:
        ValueError: fewer than ``count`` are inactive.

    Example:
        >>> grow_best(torch.tensor([True, False, False]), torch.tensor([9.0, 1.0, 2.0]), 1)
        tensor([ True, False,  True])
    """
    free = mask.numel() - int(mask.count_nonzero()) if free is None else free
    if not 0 <= count <= free:
        raise ValueError(f"Argument count should be from 0 to {free}, the free entries, but given {count}")
    return keep_top([lambda: scores], [~mask], [free], count)[0].logical_or_(mask)
