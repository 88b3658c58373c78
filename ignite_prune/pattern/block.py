"""Block: rectangular blocks (tiles)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ignite_prune.pattern.base import Grid, Pattern, both, living

_REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda blocks: blocks.mean(-1),
    "sum": lambda blocks: blocks.sum(-1),
    "max": lambda blocks: blocks.amax(-1),
}


@dataclass(frozen=True)
class Block(Pattern):
    """Rectangular blocks of ``shape`` that tile the tensor.

    A shape with one size per dimension of the tensor tiles those dimensions: ``(4, 1)`` on a Linear weight is 4 outputs
    by 1 input, ``(1, 1, 3, 3)`` on a Conv2d weight is one whole kernel. Two sizes on a convolution tile its matrix
    ``(out, kh·kw·in)``, inputs fastest, the layout of sparse kernels (and of Neural Compressor's tiles).

    Args:
        shape: size of a block along each dimension.
        reduce: the block's score is the ``"mean"``, ``"sum"`` or ``"max"`` of its entry scores; pruned entries count 0.

    Raises:
        TypeError: ``shape`` is not a sequence of ints.
        ValueError: a size below 1, or an unknown ``reduce``; when applied, a dimension is not divisible by the block's.

    Example:
        >>> Block((4, 1)).count((16, 12))
        48
    """

    shape: tuple[int, ...]
    reduce: str = "mean"
    repeats: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.shape, Sequence) or any(type(size) is not int for size in self.shape):
            raise TypeError(f"Argument shape should be a sequence of ints, but given {self.shape!r}")
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"Argument shape should be block sizes of at least 1, but given {self.shape}")
        if self.reduce not in _REDUCE:
            raise ValueError(f"Argument reduce should be one of {sorted(_REDUCE)}, but given {self.reduce!r}")

    def _as_matrix(self, ndim: int) -> bool:
        return len(self.shape) == 2 and ndim > 2

    def _grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that is tiled."""
        return (shape[0], math.prod(shape[1:])) if self._as_matrix(len(shape)) else tuple(shape)

    def over_batch(self, ndim: int) -> Block | None:
        return replace(self, shape=(1, *self.shape)) if len(self.shape) == ndim else None

    def count(self, shape: Sequence[int]) -> int:
        grid = self._grid(shape)
        if len(grid) != len(self.shape) or any(size % block for size, block in zip(grid, self.shape)):
            raise ValueError(
                f"{self} does not fit the shape {tuple(shape)}: each of {grid} should be divisible by {self.shape}; "
                "leave it out with exclude="
            )
        return math.prod(grid) // math.prod(self.shape)

    def _blocks(self, tensor: Tensor) -> Tensor:
        """Return a view ``(units along each dimension ..., entries of a block)``."""
        if self._as_matrix(tensor.ndim):
            tensor = tensor.movedim(1, -1).flatten(1)
        for dim, size in reversed(list(enumerate(self.shape))):
            tensor = torch.unflatten(tensor, dim, (-1, size))
        n = len(self.shape)
        return tensor.permute(*range(0, 2 * n, 2), *range(1, 2 * n, 2)).flatten(n)

    def grid(self, shape: Sequence[int]) -> Grid | None:
        first, *rest = zip(shape, self.shape)  # blocks of two sizes do not extend over a convolution's kernel
        if rest and rest[0][0] % rest[0][1]:
            return None
        split = [part for size, block in (first, *rest) for part in (size // block, block)]
        kernel = shape[2:] if self._as_matrix(len(shape)) else ()
        units = (*range(0, len(split), 2), *range(len(split), len(split) + len(kernel)))
        return Grid((*split, *kernel), units)

    def group(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        gone = -torch.inf if self.reduce == "max" else 0.0
        return _REDUCE[self.reduce](self._blocks(living(scores, mask, gone)))

    def alive(self, mask: Tensor) -> Tensor:
        return self._blocks(mask).any(-1)

    def spread(self, kept: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
        for dim, size in enumerate(self.shape):
            kept = kept.repeat_interleave(size, dim)
        if self._as_matrix(scores.ndim):
            channels, *kernel = scores.shape[1:]
            kept = torch.unflatten(kept, 1, (*kernel, channels)).movedim(-1, 1)
        return both(kept.clone(memory_format=torch.contiguous_format), mask)
