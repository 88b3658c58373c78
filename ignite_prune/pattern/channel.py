"""Channel: slices along one or more dimensions (filters, channels, kernels, rows, columns)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ignite_prune.pattern.base import Grid, Pattern, behind_batch, both, exchanged, living, row_norms


@dataclass(frozen=True)
class Channel(Pattern):
    """Whole slices along ``dim``; with several dims, one unit for each combination of their indices.

    On a Conv2d weight ``(out, in, kh, kw)``: ``dim=0`` a filter, ``dim=1`` an input channel, ``(0, 1)`` a kernel,
    ``(0, 1, 2)`` a row and ``(0, 1, 3)`` a column of a kernel, ``(1, 2, 3)`` one weight shared by all filters.

    Layers that store inputs first (``nn.ConvTranspose*``, transformers' ``Conv1D``) are pruned by their own layout:
    ``dim=0`` means their outputs, ``dim=1`` their inputs. In a transposed convolution with groups, a unit is the same
    output of every group.

    Args:
        dim: the dimension or dimensions that index units; negative ones count from the end.
        norm: order of the norm over a slice's entry scores: a number above 0 or ``math.inf``.

    Raises:
        TypeError: ``dim`` is not an int or a tuple of ints.
        ValueError: ``norm`` is not above 0; when applied, the tensor lacks a dimension.

    Example:
        >>> import torch
        >>> Channel(dim=0, norm=1).group(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), None)
        tensor([3., 1.], dtype=torch.float64)

    References:
        Li, Kadav, Durdanovic, Samet, Graf, "Pruning filters for efficient ConvNets", 2016, arXiv 1608.08710.
    """

    dim: int | tuple[int, ...] = 0
    norm: float = 2
    by_unit: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    def __post_init__(self) -> None:
        dims = (self.dim,) if isinstance(self.dim, int) else self.dim
        if not isinstance(dims, Sequence) or not dims or any(type(dim) is not int for dim in dims):
            raise TypeError(f"Argument dim should be an int or a tuple of ints, but given {self.dim!r}")
        if isinstance(self.norm, bool) or not isinstance(self.norm, (int, float)) or not self.norm > 0:
            raise ValueError(f"Argument norm should be a number above 0 (math.inf too), but given {self.norm!r}")
        if not isinstance(self.dim, int):
            object.__setattr__(self, "dim", tuple(self.dim))

    def inputs_first(self, ndim: int) -> Channel:
        if isinstance(self.dim, int):
            return replace(self, dim=exchanged(self.dim, ndim))
        return replace(self, dim=tuple(exchanged(dim, ndim) for dim in self.dim))

    def over_batch(self, ndim: int) -> Channel:
        dims = (self.dim,) if isinstance(self.dim, int) else self.dim
        return replace(self, dim=(0, *map(behind_batch, dims)))

    def _dims(self, ndim: int) -> tuple[int, ...]:
        dims = (self.dim,) if isinstance(self.dim, int) else self.dim
        if any(not -ndim <= dim < ndim for dim in dims) or len({dim % ndim for dim in dims}) < len(dims):
            raise ValueError(f"{self} needs {len(dims)} different dimensions of a tensor that has {ndim}")
        return tuple(sorted(dim % ndim for dim in dims))

    def _slices(self, tensor: Tensor) -> Tensor:
        """Return a view ``(units, entries of a slice)``."""
        dims = self._dims(tensor.ndim)
        rest = [dim for dim in range(tensor.ndim) if dim not in dims]
        return tensor.permute(*dims, *rest).flatten(0, len(dims) - 1).flatten(1) if rest else tensor.reshape(-1, 1)

    def count(self, shape: Sequence[int]) -> int:
        return math.prod(shape[dim] for dim in self._dims(len(shape)))

    def grid(self, shape: Sequence[int]) -> Grid:
        return Grid(tuple(shape), self._dims(len(shape)))

    def group(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return row_norms(self._slices(living(scores, mask)), self.norm)

    def alive(self, mask: Tensor) -> Tensor:
        return self._slices(mask).any(1)

    def spread(self, kept: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
        dims = self._dims(scores.ndim)
        sizes = [size if dim in dims else 1 for dim, size in enumerate(scores.shape)]
        return both(kept.view(sizes).expand(scores.shape).contiguous(), mask)
