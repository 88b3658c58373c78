"""Sparsifiers of activations, each with a batch that fits it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ignite_prune import pattern, schedule
from ignite_prune.activation import KWinners, KWinners2d, Learnt, Lifetime, TopK
from tests.catalogue.row import Row

FLAT, TOKENS, MAPS = (6, 12), (2, 3, 12), (6, 4, 4, 6)


@dataclass(frozen=True)
class SparsifierRow(Row):
    """A sparsifier, a batch's shape, and how many entries of it win in training and in evaluation."""

    shape: tuple[int, ...] = ()
    wins: int = 0
    wins_in_evaluation: int = 0
    scheduled: bool = False

    def net(self) -> nn.Module:
        """A model whose layer "0" gives :attr:`shape`."""
        if len(self.shape) == 4:
            return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
        return nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 5))

    def input(self) -> tuple[int, ...]:
        """The shape of what that model takes."""
        return (6, 3, 4, 6) if len(self.shape) == 4 else (*self.shape[:-1], 7)


HALF = schedule.Linear(0.5, begin=0, end=4)

# make() -> sparsifier
SPARSIFIERS = [
    SparsifierRow("k_winners", lambda: KWinners(3, inference=1.5), {}, FLAT, 18, 24),
    SparsifierRow("k_winners_density", lambda: KWinners(density=0.25, boost=0), {}, FLAT, 18, 18),
    SparsifierRow("k_winners_least", lambda: KWinners(density=0.01), {}, FLAT, 6, 6),
    SparsifierRow("k_winners_all", lambda: KWinners(density=1.0, inference=1.5), {}, FLAT, 72, 72),
    SparsifierRow("k_winners_tokens", lambda: KWinners(3), {}, TOKENS, 18, 18),
    SparsifierRow("k_winners_scheduled", lambda: KWinners(density=HALF), {}, FLAT, 72, 72, scheduled=True),
    SparsifierRow("k_winners_2d", lambda: KWinners2d(density=0.25, inference=1.5), {}, MAPS, 144, 216),
    SparsifierRow("k_winners_2d_local", lambda: KWinners2d(1, local=True, inference=2), {}, MAPS, 144, 288),
    SparsifierRow("lifetime", lambda: Lifetime(0.5), {}, FLAT, 36, 72),
    SparsifierRow("lifetime_maps", lambda: Lifetime(0.5), {}, MAPS, 12, 576),
    SparsifierRow("lifetime_scheduled", lambda: Lifetime(HALF), {}, FLAT, 72, 72, scheduled=True),
    SparsifierRow("top_k", lambda: TopK(0.75), {}, FLAT, 18, 18),
    SparsifierRow("top_k_units", lambda: TopK(9), {}, FLAT, 18, 18),
    SparsifierRow("top_k_nothing", lambda: TopK(0.0), {}, FLAT, 72, 72),
    SparsifierRow("top_k_all", lambda: TopK(1.0), {}, FLAT, 0, 0),
    SparsifierRow("top_k_tokens", lambda: TopK(0.75, dim=-1), {}, TOKENS, 18, 18),
    SparsifierRow("top_k_maps", lambda: TopK(0.75), {}, MAPS, 144, 144),
    SparsifierRow("top_k_scheduled", lambda: TopK(HALF), {}, FLAT, 72, 72, scheduled=True),
    SparsifierRow("channels", lambda: TopK(0.5, pattern.Channel()), {}, MAPS, 288, 288),
    SparsifierRow("columns", lambda: TopK(2, pattern.Channel(dim=-1)), {}, MAPS, 384, 384),
    SparsifierRow("positions", lambda: TopK(0.5, pattern.Channel(dim=(1, 2))), {}, MAPS, 288, 288),
    SparsifierRow("blocks", lambda: TopK(0.5, pattern.Block((1, 2, 2))), {}, MAPS, 288, 288),
    SparsifierRow("blocks_flat", lambda: TopK(0.5, pattern.Block((3,))), {}, FLAT, 36, 36),
    SparsifierRow("tiles", lambda: TopK(0.5, pattern.Block((2, 4))), {}, MAPS, 288, 288),
    SparsifierRow("n_of_m", lambda: TopK(0.5, pattern.NofM(2, 4, dim=0)), {}, FLAT, 36, 36),
    SparsifierRow("n_of_m_maps", lambda: TopK(0.25, pattern.NofM(1, 2, dim=-1)), {}, MAPS, 432, 432),
    SparsifierRow("heads", lambda: TopK(0.5, pattern.Head(2)), {}, MAPS, 288, 288),
    SparsifierRow("learnt", lambda: TopK(Learnt(0.75, target=0.9)), {}, FLAT, 18, 18),
    SparsifierRow("learnt_channels", lambda: TopK(Learnt(0.5), pattern.Channel()), {}, MAPS, 288, 288),
]
