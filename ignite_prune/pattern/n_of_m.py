"""NofM: N:M sparsity (2:4 and others)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ignite_prune._utils.small_groups import LARGEST, best_in_groups, least_in_groups
from ignite_prune.pattern.base import EntryGroups, Grid, Pattern, behind_batch, both, exchanged, living


@dataclass(frozen=True)
class NofM(Pattern):
    """Keep at most ``keep`` of every ``of`` consecutive entries along ``dim``.

    A unit is one group of ``of`` entries: pruning it removes its ``of - keep`` entries of least score, and its score is
    the sum of theirs. Along ``dim=1`` groups are over the inputs of a Linear and the input channels of a Conv (one
    group per kernel position), the layout of sparse tensor cores; in layers that store inputs first
    (``nn.ConvTranspose*``, transformers' ``Conv1D``) over the inputs too, in dimension 0 of the weight. The full
    sparsity is ``1 - keep/of``; a smaller target prunes a fraction of the groups, a larger one raises an error.

    Args:
        keep: entries kept in a group, at least 1.
        of: entries in a group, more than ``keep``.
        dim: the dimension along which groups are formed.

    Raises:
        ValueError: not ``1 <= keep < of``; when applied, ``dim`` is missing or not divisible by ``of``.

    Example:
        >>> import torch
        >>> from ignite_prune import functional
        >>> functional.mask(torch.tensor([[1.0, -4.0, 3.0, 2.0]]), 0.5, pattern=NofM(keep=2, of=4))
        tensor([[False,  True,  True, False]])

    References:
        Mishra et al., "Accelerating sparse deep neural networks", 2021, arXiv 2104.08378.
    """

    keep: int
    of: int
    dim: int = 1

    def __post_init__(self) -> None:
        for name in ("keep", "of", "dim"):
            if type(getattr(self, name)) is not int:
                raise TypeError(f"Argument {name} should be an int, but given {getattr(self, name)!r}")
        if not 1 <= self.keep < self.of:
            raise ValueError(f"NofM should have 1 <= keep < of, but given keep={self.keep}, of={self.of}")
        object.__setattr__(self, "share", (self.of - self.keep) / self.of)

    def inputs_first(self, ndim: int) -> NofM:
        return replace(self, dim=exchanged(self.dim, ndim))

    @property
    def entry_groups(self) -> EntryGroups:
        return EntryGroups(self.keep, self.of, self.dim)

    def over_batch(self, ndim: int) -> NofM:
        return replace(self, dim=behind_batch(self.dim))

    def count(self, shape: Sequence[int]) -> int:
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"{self} needs a dimension {self.dim}, but the shape is {tuple(shape)}")
        if shape[self.dim] % self.of:
            raise ValueError(
                f"{self} needs dimension {self.dim} to be divisible by {self.of}, but the shape is {tuple(shape)}; "
                "leave it out with exclude="
            )
        return math.prod(shape) // self.of

    def grid(self, shape: Sequence[int]) -> Grid:
        dim = self.dim % len(shape)
        sizes = (*shape[:dim], shape[dim] // self.of, self.of, *shape[dim + 1 :])
        return Grid(sizes, tuple(each for each in range(len(sizes)) if each != dim + 1))

    def _groups(self, tensor: Tensor) -> Tensor:
        return torch.unflatten(tensor.movedim(self.dim, -1), -1, (-1, self.of))

    def group(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        groups, masks = self._groups(scores), None if mask is None else self._groups(mask)
        if self.of <= LARGEST:
            least = least_in_groups(groups, self.of - self.keep, masks)
        else:
            least = living(groups, masks, -torch.inf).topk(self.of - self.keep, dim=-1, largest=False).values
        return (least if mask is None else least.masked_fill(least == -torch.inf, 0)).sum(-1)

    def alive(self, mask: Tensor) -> Tensor:
        return self._groups(mask).sum(-1) > self.keep

    def spread(self, kept: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
        groups, masks = self._groups(scores), None if mask is None else self._groups(mask)
        if self.of <= LARGEST:
            best = best_in_groups(groups, self.keep, masks)
        else:  # a stable, descending sort keeps the earlier of equal entries
            order = living(groups, masks, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
            best = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
            best.scatter_(-1, order[..., : self.keep], True)
        if mask is not None:  # a group that is already pruned keeps its entries
            kept = kept | ~self.alive(mask)
        if not kept.is_cpu or kept.any():
            best.logical_or_(kept.unsqueeze(-1))
        return both(best.flatten(-2).movedim(-1, self.dim), mask)
