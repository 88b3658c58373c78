"""Unstructured: single entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ignite_prune.pattern.base import Grid, Pattern


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Each entry is a unit.

    Example:
        >>> Unstructured().count((3, 4))
        12
    """

    streams: ClassVar[bool] = True

    def over_batch(self, ndim: int) -> Unstructured:
        return self

    def count(self, shape: Sequence[int]) -> int:
        return math.prod(shape)

    def grid(self, shape: Sequence[int]) -> Grid:
        return Grid(tuple(shape), tuple(range(len(shape))))

    def group(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores

    def alive(self, mask: Tensor) -> Tensor:
        return mask

    def spread(self, kept: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
        return kept  # a subset of the alive entries, so pruned ones stay pruned
