"""Bucket: a budget on the sum of pruned scores (deepstruct's "bucket")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ignite_prune._utils.arguments import check_is
from ignite_prune._utils.sparsity import kept
from ignite_prune.allocation.base import Allocation, Layer, Pool


@dataclass(frozen=True)
class Bucket(Allocation):
    """Prunes the units of least score, over all parameters, while their scores sum to at most ``budget``.

    Each update has the full budget, for the units that are left. The target sparsity is only an upper bound: use
    ``sparsity=1.0``, or omit it in ``prune_model``.

    Args:
        budget: largest sum of pruned scores, or with ``relative=True`` its fraction of the sum of all scores.
        relative: interpret ``budget`` as a fraction in [0, 1].

    Raises:
        TypeError: ``budget`` is not a number, or ``relative`` not a bool.
        ValueError: ``budget`` is negative, not finite, or above 1 although relative; or (from an update) a score is
            negative, for which a budget is not defined.

    Example:
        >>> import torch
        >>> layer = Layer("a", (4,), 4, lambda: torch.tensor([1.0, 2.0, 3.0, 4.0]), None, 4)
        >>> [pool.keep for pool in Bucket(budget=0.3, relative=True).divide([layer], 1.0)]
        [2]
    """

    budget: float
    relative: bool = False

    def __post_init__(self) -> None:
        check_is("relative", self.relative, bool)
        if isinstance(self.budget, bool) or not isinstance(self.budget, (int, float)):
            raise TypeError(f"Argument budget should be a number, but given {self.budget!r}")
        if not 0 <= self.budget < math.inf or (self.relative and self.budget > 1):
            within = "in [0, 1]" if self.relative else "finite and at least 0"
            raise ValueError(f"Argument budget should be {within}, but given {self.budget!r}")
        object.__setattr__(self, "sets_own", True)

    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        living = [layer.scores() if layer.alive is None else layer.scores()[layer.alive] for layer in layers]
        ordered = torch.cat([scores.flatten().double().cpu() for scores in living]).sort().values
        if ordered.numel() and ordered[0] < 0:
            raise ValueError(f"{self} needs scores of at least 0, but the least is {ordered[0]:g}")
        lost = ordered.cumsum(0)
        limit = self.budget * (lost[-1] if self.relative and lost.numel() else 1.0)
        pruned = int((lost <= limit).sum())
        total = sum(layer.units for layer in layers)
        return [Pool(tuple(layers), max(kept(total, sparsity), ordered.numel() - pruned))]
