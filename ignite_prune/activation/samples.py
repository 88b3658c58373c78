"""Application of a sparsity pattern to every sample of a batch."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ignite_prune.activation.row_top_k import top_of_rows
from ignite_prune.pattern import Block, Channel, NofM, Pattern, Unstructured


class Samples:
    """Unit scores of each sample of a batch, from which masks with any number of kept units are made.

    Args:
        pattern: pattern of one sample.
        scores: (samples, *shape), at least 0.

    Raises:
        ValueError: the pattern does not support the samples' shape.

    Example:
        >>> samples = Samples(Channel(), torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
        >>> samples.units, samples.keep(1)
        (2, tensor([[[ True,  True],
                 [False, False]]]))
    """

    def __init__(self, pattern: Pattern, scores: Tensor) -> None:
        self.units = pattern.count(scores.shape[1:])
        if isinstance(pattern, NofM):  # whose comparisons need numbers; NaN wins, as in the rows below
            scores = scores.nan_to_num(nan=math.inf, posinf=math.inf)
        self._scores, self._pattern = scores, pattern
        self._batched = _over_batch(pattern, scores.ndim - 1)
        if self._batched is not None:
            self._grouped = self._batched.group(scores, None)
        else:
            groups = [pattern.group(sample, None) for sample in scores]
            self._grouped = torch.stack(groups) if groups else scores.new_zeros(0, self.units)

    def keep(self, units: int) -> Tensor:
        """Return a mask that keeps the ``units`` best units of each sample; of equal ones the first."""
        rows = self._grouped.reshape(len(self._scores), self.units)
        kept = top_of_rows(rows, units).view(self._grouped.shape)
        if self._batched is not None:
            return self._batched.spread(kept, self._scores, None)
        masks = [self._pattern.spread(each, sample, None) for each, sample in zip(kept, self._scores)]
        return torch.stack(masks) if masks else torch.zeros_like(self._scores, dtype=torch.bool)


def _over_batch(pattern: Pattern, ndim: int) -> Pattern | None:
    """Return the pattern over a batch that equals ``pattern`` on each sample; None if there is none."""
    if isinstance(pattern, Unstructured):
        return pattern
    if isinstance(pattern, NofM):
        return replace(pattern, dim=_shifted(pattern.dim))
    if isinstance(pattern, Channel):
        dims = (pattern.dim,) if isinstance(pattern.dim, int) else pattern.dim
        return replace(pattern, dim=(0, *map(_shifted, dims)))
    if isinstance(pattern, Block) and len(pattern.shape) == ndim:
        return replace(pattern, shape=(1, *pattern.shape))
    return None


def _shifted(dim: int) -> int:
    return dim + 1 if dim >= 0 else dim
