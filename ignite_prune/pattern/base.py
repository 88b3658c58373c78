"""The one interface every pattern has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """How a tensor is viewed so that some dimensions number the units and the others a unit's entries.

    Attributes:
        sizes: of the view, a splitting of the tensor's dimensions, in any memory format.
        units: the dimensions of the view that number the units.
    """

    sizes: tuple[int, ...]
    units: tuple[int, ...]


class Pattern(ABC):
    """A way to cut a tensor into units that are kept or pruned as wholes. A value: frozen, stateless.

    ``mask`` below is the mask so far, None where nothing is pruned yet; a unit with nothing left to prune is dead and
    is never counted again.

    Attributes:
        streams: units are the entries themselves, so scores may be computed again rather than held.
        by_unit: a saliency may give one score a unit, 1-D, instead of one an entry.
        share: the fraction of a unit's entries that goes when the unit is pruned; the pattern's largest sparsity.
    """

    streams: ClassVar[bool] = False
    by_unit: ClassVar[bool] = False
    share: float = 1.0

    @abstractmethod
    def count(self, shape: Sequence[int]) -> int:
        """Return the number of units in a tensor of ``shape``.

        Raises:
            ValueError: the pattern does not fit the shape.
        """

    def grid(self, shape: Sequence[int]) -> Grid | None:
        """Return how a tensor of ``shape`` is viewed by units, for what is done often; None where no view shows them.

        Where :attr:`share` is below 1 a unit's entries are those of its part of the view that :meth:`spread` prunes.
        """
        return None

    def takes(self, scores: Sequence[int], shape: Sequence[int]) -> bool:
        """Whether scores of this shape, for a tensor of ``shape``, are one a unit."""
        return self.by_unit and tuple(scores) == (self.count(shape),)

    @abstractmethod
    def group(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Return the units' scores from the entries' (a tensor with ``count`` elements)."""

    @abstractmethod
    def alive(self, mask: Tensor) -> Tensor:
        """Return which units still have something to prune: bool, shaped as :meth:`group`'s answer."""

    @abstractmethod
    def spread(self, kept: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Return the entries' mask from the units' (bool, True = kept); entries pruned in ``mask`` stay pruned."""


def norms(slices: Tensor, order: float) -> Tensor:
    """Return the norm of each row in float64, where squares neither overflow nor vanish.

    Raises:
        ValueError: a score is negative: a norm would turn it round.
    """
    if slices.numel() and slices.min() < 0:
        raise ValueError(
            "a norm needs scores of at least 0, but some are negative; take one without signs, or one score a unit"
        )
    norm: Tensor = torch.linalg.vector_norm(slices, ord=order, dim=1, dtype=torch.float64)
    return norm


def both(mask: Tensor, earlier: Tensor | None) -> Tensor:
    """Keep what both masks keep."""
    return mask if earlier is None else mask & earlier


def living(scores: Tensor, mask: Tensor | None, gone: float = 0.0) -> Tensor:
    """Give entries that are pruned already the score ``gone``, with which they count for nothing in their unit."""
    return scores if mask is None else scores.masked_fill(~mask, gone)
