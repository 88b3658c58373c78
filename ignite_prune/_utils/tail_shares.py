"""Shares of the largest scores, as LAMP ranks them, selected without sorting all scores.

The share of a score is its square divided by the sum of the squares from the largest score of its tensor down to it.
Shares fall with the scores, so only the number of scores that each tensor keeps is unknown. A sample of each tensor
brackets it, as in ``topk``; one pass then sums the squares above the bracket and collects the scores inside, and only
these are sorted. Sums in another order than that of the definition differ in their last bits, so where two tensors'
shares are closer than the rounding errors can be, all scores are sorted after all: masks are the same, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ignite_prune._utils.bits import count_true
from ignite_prune._utils.compare import above, kth_smallest, places_of
from ignite_prune._utils.score_source import ScoreSource, sample_stride

_SPREADS = 4.0, 40.0  # standard errors of a rank
_ROUNDING = 2.0**-50


@dataclass(frozen=True)
class TailShares(ScoreSource):
    """The shares of one tensor's scores; ``whole`` sorts all scores, and is called only if the selection needs it.

    Args:
        scores: the scores, at least 0.
    """

    scores: ScoreSource


class _Cut:
    """The scores of one tensor above a bracket, as a mask and a sum, and those inside, from the largest down."""

    def __init__(self, source: ScoreSource, alive: Tensor | None, mask: Tensor, bracket: tuple[float, float]) -> None:
        low, high = bracket
        low = float(torch.tensor(low).nextafter(torch.tensor(-1.0)))
        self.mask, self.above, self.has_negative, start, squares = mask, 0, False, 0, 0.0
        places, values = [], []
        for piece in source.pieces():
            scores, part = piece.float(), mask[start : start + piece.numel()]
            self.has_negative |= len(scores) > 0 and float(scores.min()) < 0
            inside = above(scores, low, torch.empty_like(part))
            above(scores, high, part)
            if alive is not None:
                inside &= alive[start : start + piece.numel()]
                part &= alive[start : start + piece.numel()]
            self.above += count_true(part)
            largest = scores.mul(part).double()
            squares += float(largest.dot(largest))
            found = places_of(inside.logical_xor_(part))
            values.append(scores[found])
            places.append(found.add_(start))
            start += piece.numel()
        joined, order = descending(torch.cat(values))
        self.places, inside_squares = torch.cat(places)[order], joined.double().square()
        self.shares = inside_squares / inside_squares.cumsum(0).add_(squares).clamp_(
            min=torch.finfo(torch.float64).tiny
        )

    def keep(self, count: int) -> None:
        """Add the first ``count`` of the scores inside to the mask."""
        self.mask.index_fill_(0, self.places[:count], True)

    def is_cut(self, count: int, living: int) -> bool:
        """Return whether the bracket holds the last score that is kept, and the first that is not, if there is one."""
        return (count > 0 or not self.above) and (count < len(self.places) or self.above + count == living)


def descending(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values of at least 0 in descending order, and where each was; of equal ones the first comes first.

    Bits of positive numbers have the order of the numbers, and integers are sorted in ascending order by their digits,
    six times as fast.
    """
    if values.itemsize > 4:
        return values.sort(descending=True, stable=True)
    keys, order = values.float().add(0.0).view(torch.int32).neg_().sort(stable=True)  # 0.0 added to -0.0 is 0.0
    return keys.neg_().view(torch.float32), order


def keep_top_shares(
    sources: Sequence[TailShares],
    alive: Sequence[Tensor | None],
    living: Sequence[int],
    keep: int,
    masks: Sequence[Tensor],
) -> bool:
    """Write the masks of the ``keep`` largest shares of all tensors, and return True; False if that needs a sort.

    Args:
        sources: the shares of each tensor.
        alive: which entries may be kept; None: all.
        living: their numbers.
        keep: total number of entries to keep, more than 0 and less than all.
        masks: what to write to, contiguous bool tensors.
    """
    flat = [mask.view(-1) for mask in masks]
    living_at = [None if each is None else each.reshape(-1) for each in alive]
    samples = _samples(sources, living_at, sum(living))
    if any(sample.itemsize > 4 for sample in samples):
        return False
    for spread in _SPREADS:
        brackets = _brackets(samples, keep / sum(living), spread)
        parts = zip(sources, living_at, flat, brackets)
        cuts = [_Cut(each.scores, left, mask, bracket) for each, left, mask, bracket in parts]
        if any(each.has_negative for each in cuts):
            return False
        counts = _divided(cuts, keep - sum(each.above for each in cuts))
        if counts is not None and all(map(_Cut.is_cut, cuts, counts, living)):
            break
    else:
        return False
    if not _is_certain(cuts, counts, sum(living)):
        return False
    for cut, count in zip(cuts, counts):
        cut.keep(count)
    return True


def _samples(sources: Sequence[TailShares], alive: Sequence[Tensor | None], total: int) -> list[Tensor]:
    """Return some of the living scores of each tensor, from the largest down."""
    stride, found = sample_stride(total), []
    for source, mask in zip(sources, alive):
        values = source.scores.every(stride)
        values = values if mask is None else values[mask[::stride]]
        found.append(descending(values)[0])
    return found


def _brackets(samples: Sequence[Tensor], density: float, spread: float) -> list[tuple[float, float]]:
    """Return bounds of the smallest score that each tensor keeps, ``spread`` standard errors to both sides."""
    squares = [sample.double().square().cpu() for sample in samples]
    shares = [each / each.cumsum(0).clamp_(min=torch.finfo(torch.float64).tiny) for each in squares]
    together = torch.cat(shares)
    rank = min(max(round(len(together) * (1 - density)), 1), len(together))
    threshold = together.kthvalue(rank).values if len(together) else 0.0
    found = []
    for sample, share in zip(samples, shares):
        size, kept = len(sample), int((share > threshold).sum())
        margin = spread * math.sqrt(max(kept * (size - kept) / max(size, 1), 1.0)) + 2
        first, last = math.floor(kept - margin), math.ceil(kept + margin)
        high = float(sample[first]) if first >= 0 else math.inf
        found.append((float(sample[last]) if last < size else 0.0, high))
    return found


def _divided(cuts: Sequence[_Cut], keep: int) -> list[int] | None:
    """Return how many scores of each bracket are among the ``keep`` largest shares; None if there are not as many."""
    if not 0 <= keep <= sum(len(each.shares) for each in cuts):
        return None
    if not keep:
        return [0] * len(cuts)
    together = torch.cat([each.shares.to(cuts[0].shares.device) for each in cuts])
    (threshold,) = kth_smallest(together, len(together) - keep + 1)
    counts = [int((each.shares > threshold.to(each.shares.device)).sum()) for each in cuts]
    for number, each in enumerate(cuts):  # of equal shares, those of the first tensor
        ties = int((each.shares == threshold.to(each.shares.device)).sum())
        counts[number] += min(ties, keep - sum(counts))
    return counts


def _is_certain(cuts: Sequence[_Cut], counts: Sequence[int], total: int) -> bool:
    """Return whether every share that is kept is above those of other tensors that are not, whatever the rounding."""
    kept = [float(cut.shares[n - 1]) if n else math.inf for cut, n in zip(cuts, counts)]
    pruned = [float(cut.shares[n]) if n < len(cut.shares) else -1.0 for cut, n in zip(cuts, counts)]
    order = sorted(range(len(cuts)), key=pruned.__getitem__, reverse=True)[:2]  # one of them is another tensor's
    margin = 1 + total * _ROUNDING
    return all(least > margin * pruned[j] for i, least in enumerate(kept) for j in order if j != i)
