"""ConstantFanIn: the same number of inputs for every neuron of a layer, and ablation of weak neurons (SRigL)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune._utils.topk_by_row import keep_top_by_row
from ignite_prune.regrow.base import Connections, Move, Rewired, drop_smallest, grow_best
from ignite_prune.regrow.fraction import check_fraction
from ignite_prune.regrow.growth import ByGradient, Growth


@dataclass(frozen=True)
class ConstantFanIn(Move):
    """RigL with the constraint that all active neurons of a layer (indices of dim 0) have the same number of inputs.

    The smallest weights of the layer are dropped. A weight is salient if it survives, or is one of the equally many
    inactive weights with the largest scores. A neuron with fewer salient weights than ``min_salient`` times its fan-in
    is ablated permanently, and its inputs are given to the others: the new fan-in is the layer's budget divided by the
    number of neurons, rounded down. Each neuron then grows inputs up to this fan-in.

    Args:
        min_salient: γ, in (0, 1); None ablates no neuron.
        growth: scores of the entries to grow.

    Raises:
        TypeError, ValueError: ``min_salient`` is not a number in (0, 1).

    References:
        Lasby, Golubeva, Evci, Nica, Ioannou, "Dynamic sparse training with structured sparsity", 2024,
        arXiv 2305.02299.
    """

    min_salient: float | None = 0.3
    growth: Growth = ByGradient()

    def __post_init__(self) -> None:
        if self.min_salient is not None:
            check_fraction("min_salient", self.min_salient)

    def first(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a mask of constant fan-in: the active entries of ``mask`` per neuron, rounded down, at least 1."""
        rows = mask.shape[0]
        fan_in = max(1, int(mask.count_nonzero()) // rows)
        scores = torch.rand(mask.shape, generator=generator, device=generator.device).to(mask.device)
        return keep_top_by_row(scores, None, fan_in * rows)

    def check(self, name: str, mask: Tensor) -> None:
        """Raise ValueError unless every neuron that has inputs has the same number of them."""
        inputs = sorted(set(mask.flatten(1).sum(1).tolist()))
        if len([each for each in inputs if each]) > 1:
            raise ValueError(
                f"The mask of {name!r} should give each living neuron the same number of inputs, but given {inputs}"
            )

    def __call__(self, layers: Sequence[Connections], fraction: float, generator: torch.Generator) -> list[Rewired]:
        return [self._rewired(layer, fraction, generator) for layer in layers]

    def _rewired(self, layer: Connections, fraction: float, generator: torch.Generator) -> Rewired:
        count = int(layer.active * fraction)
        if count == 0 or layer.active == layer.mask.numel():
            return Rewired(layer.mask, layer.mask)
        budget = layer.active if layer.budget is None else layer.budget
        scores = self.growth.scores(layer, generator).flatten(1)
        mask = layer.mask.flatten(1)
        survivors = drop_smallest(layer.weight, layer.mask, count).flatten(1)
        alive = self._alive(mask, survivors, scores, count, budget)
        fan_in = min(mask.shape[1], budget // int(alive.count_nonzero()))
        survivors = survivors & alive.unsqueeze(1)
        grown = survivors | _best_of_rows(scores, survivors, alive, fan_in)
        return Rewired(survivors.view(layer.mask.shape), grown.view(layer.mask.shape))

    def _alive(self, mask: Tensor, survivors: Tensor, scores: Tensor, count: int, budget: int) -> Tensor:
        """Return which neurons (rows) stay active, bool; at least as many as the budget needs."""
        living = mask.any(1)
        if self.min_salient is None:
            return living
        closed = mask | ~living.unsqueeze(1)  # entries that cannot grow
        room = closed.numel() - int(closed.count_nonzero())
        salient = (survivors | (grow_best(closed, scores, min(count, room)) & ~closed)).sum(1)
        fan_in = int(mask.sum(1).max())
        alive = living & (salient >= self.min_salient * fan_in)
        fewest = max(1, min(math.ceil(budget / mask.shape[1]), int(living.count_nonzero())))
        if int(alive.count_nonzero()) < fewest:
            alive = grow_best(torch.zeros_like(living), salient.masked_fill(~living, -1).float(), fewest)
        return alive


def _best_of_rows(scores: Tensor, survivors: Tensor, alive: Tensor, fan_in: int) -> Tensor:
    """Return the inactive entries with the largest scores that fill each row of ``alive`` up to ``fan_in``."""
    missing = (fan_in - survivors.sum(1)).clamp(min=0) * alive
    order = scores.double().masked_fill(survivors, -math.inf).sort(dim=1, descending=True, stable=True).indices
    ranks = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.zeros_like(survivors).scatter_(1, order, ranks < missing.unsqueeze(1))
