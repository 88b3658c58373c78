"""Candidates: the scores of one tensor that may be at the threshold of a selection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ignite_prune._utils.bits import count_true
from ignite_prune._utils.compare import above, below, kth_smallest, places_of
from ignite_prune._utils.score_source import ScoreSource


class Candidates:
    """Mask of one tensor's scores above a bracket's lower bound, and the candidates inside the bracket.

    Args:
        source: of the scores.
        alive: which entries may be kept; None: all.
        mask: flat bool tensor, written to.
        low, high: the bracket.

    Attributes:
        mask: the alive scores above ``low``, flat.
        above: their number.
        places, values: flat indices and scores of those below ``high``.
    """

    def __init__(self, source: ScoreSource, alive: Tensor | None, mask: Tensor, low: float, high: float) -> None:
        self._source, self._alive = source, None if alive is None else alive.reshape(-1)
        self.mask, self.above, start = mask, 0, 0
        places, values = [], []
        inside = torch.empty(0, dtype=torch.bool)
        for piece in source.pieces():
            scores, stop = _exact(piece, low, high), start + piece.numel()
            if len(inside) != len(scores) or inside.device != scores.device:
                inside = torch.empty_like(scores, dtype=torch.bool)
            kept = above(scores, low, mask[start:stop])
            if self._alive is not None:
                kept &= self._alive[start:stop]
            self.above += count_true(kept)
            found = places_of(below(scores, high, inside).logical_and_(kept))
            values.append(scores[found])
            places.append(found.add_(start))
            start = stop
        self.places = torch.cat(places) if places else torch.empty(0, dtype=torch.int64)
        self.values = torch.cat(values) if values else torch.empty(0)

    def move_ties(self, value: float, count: int, keep: bool) -> int:
        """Keep the first ``count`` scores equal to ``value``, or drop the last; return how many there were."""
        scores = torch.cat([(_exact(piece, value) == value) for piece in self._source.pieces()])
        ties = scores if self._alive is None else scores.logical_and_(self._alive)
        places = places_of(ties)
        places = places[:count] if keep else places[max(len(places) - count, 0) :]
        self.mask.index_fill_(0, places, keep)
        return len(places)


def drop_least(candidates: Sequence[Candidates], count: int) -> None:
    """Remove the ``count`` smallest candidates from the masks; of equal ones the last."""
    if count == 0:
        return
    device = candidates[0].values.device
    values = torch.cat([each.values.to(device) for each in candidates])
    (threshold,) = kth_smallest(values, count)
    drop = values < threshold
    ties = (values == threshold).nonzero().squeeze(1)
    drop[ties[ties.numel() - (count - int(drop.count_nonzero())) :]] = True
    for each, gone in zip(candidates, torch.split(drop, [each.values.numel() for each in candidates])):
        each.mask.index_fill_(0, each.places[gone.to(each.places.device)], False)


def _exact(values: Tensor, *thresholds: float) -> Tensor:
    """Return ``values`` in a dtype that represents the thresholds: float32 and float64 scores may be ranked together.

    Half precision becomes float32, which is compared faster.
    """
    values = values.float() if values.itemsize < 4 else values
    held = torch.tensor(thresholds, dtype=values.dtype).tolist() == list(thresholds)
    return values if held else values.double()
