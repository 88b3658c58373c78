"""PerLayer: drop and grow within each layer (SET, RigL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ignite_prune.regrow.base import Connections, Move, Rewired, drop_smallest, grow_best
from ignite_prune.regrow.growth import Growth


@dataclass(frozen=True)
class PerLayer(Move):
    """Drops the ``int(fraction * active)`` smallest weights of a layer and grows as many inactive entries.

    Entries that were just dropped may be grown again, starting from 0. A layer without inactive entries is not changed.

    Args:
        growth: scores of the entries to grow.

    Example:
        >>> from ignite_prune.regrow import ByGradient
        >>> weight, mask = torch.tensor([3.0, 1.0, 0.0, 0.0]), torch.tensor([True, True, False, False])
        >>> layer = Connections("fc", weight, mask, evidence=torch.tensor([0.0, 1.0, 5.0, 7.0]))
        >>> PerLayer(ByGradient())([layer], 0.5, torch.Generator())[0].mask
        tensor([ True, False, False,  True])
    """

    growth: Growth

    def __call__(self, layers: Sequence[Connections], fraction: float, generator: torch.Generator) -> list[Rewired]:
        return [self._rewired(layer, fraction, generator) for layer in layers]

    def _rewired(self, layer: Connections, fraction: float, generator: torch.Generator) -> Rewired:
        count = int(layer.active * fraction)
        if count == 0 or layer.active == layer.mask.numel():
            return Rewired(layer.mask, layer.mask)
        survivors = drop_smallest(layer.weight, layer.mask, count, layer.active)
        free = layer.mask.numel() - layer.active + count
        return Rewired(survivors, grow_best(survivors, self.growth.scores(layer, generator), count, free))
