"""Base class of patterns, and helpers for scores of slices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ignite_prune._utils.stated import stated


class Grid(NamedTuple):
    """A view of a tensor in which some dimensions index units and the others the entries of a unit.

    Attributes:
        sizes: sizes of the view, which splits dimensions of the tensor, so that it exists in any memory format.
        units: the dimensions of the view that index units.
    """

    sizes: tuple[int, ...]
    units: tuple[int, ...]


class EntryGroups(NamedTuple):
    """Groups of ``of`` consecutive entries along ``dim``, each a unit that keeps ``keep`` of them when it is pruned."""

    keep: int
    of: int
    dim: int


class Pattern(ABC):
    """A partition of a tensor into units that are kept or pruned as a whole. Frozen and stateless.

    The ``mask`` argument below is the current mask, None if nothing is pruned yet. A unit with nothing left to prune is
    dead and is not counted again.

    Attributes:
        streams: units are single entries, so scores can be recomputed instead of stored.
        by_unit: a saliency may return one score per unit (1-D) instead of one per entry.
        repeats: :meth:`spread` repeats the unit mask over the entries and reads only the shape of the scores; not
            inherited by a class that overrides it.
        share: the fraction of a unit's entries that is pruned with the unit: the largest sparsity of the pattern.
    """

    streams: ClassVar[bool] = False
    by_unit: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    share: float = 1.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.repeats = stated(cls, "repeats", "spread")

    def inputs_first(self, ndim: int) -> Pattern:
        """Return the pattern for a tensor of ``ndim`` dimensions that stores its inputs in dim 0, its outputs in dim 1.

        The same pattern, unless its dimensions stand for outputs and inputs.
        """
        return self

    @property
    def entry_groups(self) -> EntryGroups | None:
        """The groups of entries that are its units, if a pruned unit keeps some of its entries; else None."""
        return None

    def over_batch(self, ndim: int) -> Pattern | None:
        """Return the pattern of a batch that equals this one on each sample of ``ndim`` dimensions; None if none is."""
        return None

    @abstractmethod
    def count(self, shape: Sequence[int]) -> int:
        """Return the number of units in a tensor of ``shape``.

        Raises:
            ValueError: the pattern does not fit the shape.
        """

    def grid(self, shape: Sequence[int]) -> Grid | None:
        """Return a view of a tensor of ``shape`` by units, for fast code paths; None if there is no such view.

        If :attr:`share` is below 1, pruning a unit only removes those of its entries in the view that :meth:`spread`
        prunes.
        """
        return None

    def takes(self, scores: Sequence[int], shape: Sequence[int]) -> bool:
        """Return whether scores of this shape are unit scores of a tensor of ``shape``."""
        return self.by_unit and tuple(scores) == (self.count(shape),)

    @abstractmethod
    def group(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Return unit scores, a tensor with ``count`` elements, from entry scores."""

    @abstractmethod
    def alive(self, mask: Tensor) -> Tensor:
        """Return which units still have something to prune: bool, in the shape that :meth:`group` returns."""

    @abstractmethod
    def spread(self, kept: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Return the entry mask of a unit mask (bool, True = kept); entries pruned in ``mask`` stay pruned."""


def exchanged(dim: int, ndim: int) -> int:
    """Return the number of a dimension after dimensions 0 and 1 of ``ndim`` are exchanged."""
    return {0: 1, 1: 0}.get(dim % ndim, dim) if ndim > 1 else dim


def behind_batch(dim: int) -> int:
    """Return the number of a dimension after a dimension 0 is added."""
    return dim + 1 if dim >= 0 else dim


def row_norms(slices: Tensor, order: float) -> Tensor:
    """Return the norm of each row in float64, in which squares neither overflow nor underflow.

    Raises:
        ValueError: a score is negative; a norm would ignore its sign.
    """
    if slices.numel() and slices.min() < 0:
        raise ValueError(
            "a norm needs scores of at least 0, but some are negative; take one without signs, or one score a unit"
        )
    norm: Tensor = torch.linalg.vector_norm(slices, ord=order, dim=1, dtype=torch.float64)
    return norm


def both(mask: Tensor, earlier: Tensor | None) -> Tensor:
    """Return the entries that both masks keep."""
    return mask if earlier is None else mask & earlier


def living(scores: Tensor, mask: Tensor | None, gone: float = 0.0) -> Tensor:
    """Replace the scores of pruned entries by ``gone``, the neutral element of the reduction over a unit."""
    return scores if mask is None else scores.masked_fill(~mask, gone)
