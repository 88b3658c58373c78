"""Application of a sparsity pattern to every sample of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ignite_prune.activation.row_top_k import top_of_rows
from ignite_prune.pattern import Pattern


class Samples:
    """Unit scores of each sample of a batch, from which masks with any number of kept units are made.

    Args:
        pattern: pattern of one sample.
        scores: (samples, *shape), at least 0.

    Raises:
        ValueError: the pattern does not support the samples' shape.

    Example:
        >>> from ignite_prune import pattern
        >>> samples = Samples(pattern.Channel(), torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
        >>> samples.units, samples.keep(1)
        (2, tensor([[[ True,  True],
                 [False, False]]]))
    """

    def __init__(self, pattern: Pattern, scores: Tensor) -> None:
        self.units = pattern.count(scores.shape[1:])
        if pattern.entry_groups is not None:  # compared with each other, so NaN is replaced: it wins, as in rows below
            scores = scores.nan_to_num(nan=math.inf, posinf=math.inf)
        self._scores, self._pattern = scores, pattern
        self._batched = pattern.over_batch(scores.ndim - 1)
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
