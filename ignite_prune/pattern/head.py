"""Head: attention heads, as groups of rows of a projection's weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ignite_prune.pattern.base import Grid, Pattern, both, living, row_norms


@dataclass(frozen=True)
class Head(Pattern):
    """Groups of ``size`` consecutive slices along ``dim``: the rows (or columns) of one attention head.

    ``nn.MultiheadAttention.in_proj_weight`` stacks the projections of queries, keys and values: with ``parts=3`` a head
    consists of its rows in all three. In an output projection the heads are along ``dim=1``.

    Args:
        size: rows per head (``embed_dim // num_heads``).
        dim: the dimension that is divided into heads.
        parts: number of projections stacked along ``dim``.
        norm: order of the norm over a head's entry scores.

    Raises:
        TypeError: ``size``, ``dim`` or ``parts`` is not an int.
        ValueError: ``size`` or ``parts`` is below 1, or ``norm`` not above 0; when applied, ``dim`` is missing or not
            divisible by ``size * parts``.

    Example:
        >>> Head(size=16, parts=3).count((192, 64))
        4

    References:
        Michel, Levy, Neubig, "Are sixteen heads really better than one?", 2019, arXiv 1905.10650.
    """

    size: int
    dim: int = 0
    parts: int = 1
    norm: float = 2
    by_unit: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("size", "dim", "parts"):
            if type(getattr(self, name)) is not int:
                raise TypeError(f"Argument {name} should be an int, but given {getattr(self, name)!r}")
        if self.size < 1 or self.parts < 1:
            raise ValueError(f"Head should have size and parts of at least 1, but given {self}")
        if isinstance(self.norm, bool) or not isinstance(self.norm, (int, float)) or not self.norm > 0:
            raise ValueError(f"Argument norm should be a number above 0 (math.inf too), but given {self.norm!r}")

    def count(self, shape: Sequence[int]) -> int:
        if not -len(shape) <= self.dim < len(shape) or shape[self.dim] % (self.size * self.parts):
            raise ValueError(
                f"{self} needs dimension {self.dim} to be divisible by size * parts = {self.size * self.parts}, "
                f"but the shape is {tuple(shape)}; leave it out with exclude="
            )
        return shape[self.dim] // (self.size * self.parts)

    def grid(self, shape: Sequence[int]) -> Grid:
        dim = self.dim % len(shape)
        return Grid((*shape[:dim], self.parts, self.count(shape), self.size, *shape[dim + 1 :]), (dim + 1,))

    def _heads(self, tensor: Tensor) -> Tensor:
        """Return a view ``(heads, entries of a head)``."""
        rows: Tensor = torch.unflatten(tensor.movedim(self.dim, 0), 0, (self.parts, -1, self.size))
        return rows.movedim(1, 0).flatten(1)

    def group(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return row_norms(self._heads(living(scores, mask)), self.norm)

    def alive(self, mask: Tensor) -> Tensor:
        return self._heads(mask).any(1)

    def spread(self, kept: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
        rows = kept.repeat_interleave(self.size).repeat(self.parts)
        sizes = [1] * scores.ndim
        sizes[self.dim] = -1
        return both(rows.view(sizes).expand(scores.shape).contiguous(), mask)
