"""Exact top-k over many tensors as if they were one, without concatenating them.

The obvious way, ``kthvalue`` or ``sort`` over a concatenation of all scores, copies every score, needs more temporaries
of that size, and takes about 100 times as long as copying the weights. A threshold estimated from a sample alone
is fast, but not exact. Here a sample only brackets the threshold: its order statistics at a few standard errors around
the wanted rank. One pass per tensor then masks the scores above the lower bound and collects the candidates inside the
bracket, about one score in a hundred, and a partition of these finds the exact threshold. If the counts show that
the bracket missed the rank, it is widened, at last to everything, so the result never depends on the sample.

Selection is by count, never by comparing with a threshold alone, because equal scores would keep too many or too few:
ties are broken by position, the earlier tensor and then the lower index first, so masks are the same on every run,
device and rank. Besides the masks, memory holds one piece of the scores at a time and the candidates; scores are
functions, so that cheap ones (magnitudes) are recomputed instead of stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ignite_prune._utils.candidates import Candidates, drop_least
from ignite_prune._utils.compare import kth_smallest
from ignite_prune._utils.score_source import ScoreSource, sample_stride, source_of
from ignite_prune._utils.tail_shares import TailShares, keep_top_shares

_FEW = 1 << 14  # scores that are sorted


def keep_top(
    scores: Sequence[Callable[[], Tensor]],
    alive: Sequence[Tensor | None],
    living: Sequence[int],
    keep: int,
    floors: Sequence[int] = (),
) -> list[Tensor]:
    """Return bool masks of the ``keep`` largest alive scores of all tensors, at least ``floors[i]`` of tensor i.

    Args:
        scores: functions that return the score tensors; each is called a few times and has to return the same finite
            values. A :class:`.ScoreSource` is read in pieces.
        alive: bool tensors of the scores' shapes, or None if all entries are alive.
        living: number of alive entries of each tensor.
        keep: total number of entries to keep; all alive ones if there are fewer.
        floors: minimum number of entries to keep of each tensor; all alive ones if there are fewer.

    Returns:
        Masks in the scores' shapes. Of equal scores, the earlier tensor and then the lower flat index is kept.

    Example:
        >>> a, b = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([2.0, 0.0])
        >>> keep_top([lambda: a, lambda: b], [None, None], [3, 2], keep=2)
        [tensor([False,  True,  True]), tensor([False, False])]
    """
    masks: dict[int, Tensor] = {}
    sources = [each if isinstance(each, ScoreSource) else source_of(each) for each in scores]
    free = list(range(len(scores)))
    while free:
        found = _top([sources[i] for i in free], [alive[i] for i in free], [living[i] for i in free], keep)
        short = [
            i for i, mask in zip(free, found) if any(floors) and int(mask.count_nonzero()) < min(floors[i], living[i])
        ]
        if not short:
            masks |= zip(free, found)
            break
        for i in short:  # the threshold of the others only rises, so these remain below their floors
            (masks[i],) = _top([sources[i]], [alive[i]], [living[i]], floors[i])
            keep -= min(floors[i], living[i])
        free = [i for i in free if i not in short]
    return [masks[i] for i in range(len(scores))]


def _top(
    scores: Sequence[ScoreSource], alive: Sequence[Tensor | None], living: Sequence[int], keep: int
) -> list[Tensor]:
    """Return masks of the ``keep`` largest alive scores of all tensors."""
    total = sum(living)
    # Masks are allocated before short-lived temporaries, which would fragment the memory.
    masks = [torch.empty(each.shape, dtype=torch.bool, device=each.device) for each in scores]
    if keep >= total:
        return [mask.fill_(True) if a is None else a.clone() for mask, a in zip(masks, alive)]
    if keep <= 0:
        return [mask.fill_(False) for mask in masks]
    if total <= _FEW:
        _keep_by_sorting(scores, alive, masks, keep)
        return masks
    shares = [each for each in scores if isinstance(each, TailShares)]
    if len(shares) == len(scores) and keep_top_shares(shares, alive, living, keep, masks):
        return masks
    rank, flat = total - keep, [mask.view(-1) for mask in masks]
    for spread in (4.0, 40.0, math.inf):  # a bracket that misses is widened, at last to all scores
        bracket = _bracket(scores, alive, living, rank, spread)
        found = [Candidates(*each, *bracket) for each in zip(scores, alive, flat)]
        inside = sum(each.values.numel() for each in found)
        drop = rank - (total - sum(each.above for each in found))  # entries above low that are not in the top
        drop_least(found, min(max(drop, 0), inside))
        left = 0
        if drop < 0:  # the threshold equals low, unless the bracket missed
            left = _move_ties(found, bracket[0], -drop, keep=True)
        elif drop > inside:  # the threshold equals high
            left = _move_ties(found, bracket[1], drop - inside, keep=False)
        if left == 0:
            return masks
    raise AssertionError("the widest bracket holds every score")  # pragma: no cover


def _keep_by_sorting(
    scores: Sequence[ScoreSource], alive: Sequence[Tensor | None], masks: Sequence[Tensor], keep: int
) -> None:
    """Set the ``keep`` largest alive scores to True by sorting all: the plain way, for few scores."""
    places = [(torch.ones_like(m) if a is None else a).reshape(-1).nonzero().squeeze(1) for m, a in zip(masks, alive)]
    values = torch.cat([each.whole().reshape(-1)[at].double().cpu() for each, at in zip(scores, places)])
    best = torch.zeros_like(values, dtype=torch.bool)
    best[values.sort(descending=True, stable=True).indices[:keep]] = True
    for mask, at, kept in zip(masks, places, torch.split(best, [len(at) for at in places])):
        mask.fill_(False).view(-1)[at] = kept.to(mask.device)


def _move_ties(candidates: Sequence[Candidates], value: float, count: int, keep: bool) -> int:
    """Keep the first ``count`` scores equal to ``value``, or drop the last ``count``; return how many are missing."""
    for each in candidates if keep else reversed(candidates):
        count -= each.move_ties(value, count, keep) if count else 0
    return count


def _bracket(
    scores: Sequence[ScoreSource],
    alive: Sequence[Tensor | None],
    living: Sequence[int],
    rank: int,
    spread: float,
) -> tuple[float, float]:
    """Return bounds of the ``rank``-th smallest score, ``spread`` standard errors to both sides, from a sample."""
    total = sum(living)
    if spread == math.inf:
        return -math.inf, math.inf
    stride, samples = sample_stride(total), []
    for score, mask in zip(scores, alive):
        values = score.every(stride)
        values = values if mask is None else values[mask.reshape(-1)[::stride]]
        samples.append(values.float() if values.itemsize < 4 else values)
    dtype = max((each.dtype for each in samples), key=lambda each: each.itemsize)
    sample = torch.cat([each.to(samples[0].device, dtype) for each in samples])
    n, p = len(sample), rank / total
    margin = spread * math.sqrt(max(n * p * (1 - p), 1.0)) + 2
    first, last = max(math.floor(n * p - margin), 0), min(math.ceil(n * p + margin), n + 1)
    found = kth_smallest(sample, *(each for each in (first, last) if 1 <= each <= n))
    low = float(found[0]) if first >= 1 else -math.inf
    high = float(found[-1]) if last <= n else math.inf
    return low, high
