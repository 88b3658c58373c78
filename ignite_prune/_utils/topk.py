"""Exact top-k over many tensors as if they were one, without concatenating them.

The obvious way, ``kthvalue`` or ``sort`` over a concatenation of all scores, copies every score, needs more temporaries
of that size, and takes about 100 times as long as copying the weights. A threshold estimated from a sample alone
is fast, but not exact. Here a sample only brackets the threshold: its order statistics at a few standard errors around
the wanted rank. One pass per tensor then masks the scores above the lower bound and collects the candidates inside the
bracket, about one score in a hundred, and ``kthvalue`` over these finds the exact threshold. If the counts show that
the bracket missed the rank, it is widened, at last to everything, so the result never depends on the sample.

Selection is by count, never by comparing with a threshold alone, because equal scores would keep too many or too few:
ties are broken by position, the earlier tensor and then the lower index first, so masks are the same on every run,
device and rank. Besides the masks, memory holds the scores of one tensor at a time and the candidates; scores are
functions, so that cheap ones (magnitudes) are recomputed instead of stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_LEAST, _MOST = 1 << 12, 1 << 18  # bounds of the sample size


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
            values.
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
    free = list(range(len(scores)))
    while free:
        found = _top([scores[i] for i in free], [alive[i] for i in free], [living[i] for i in free], keep)
        short = [
            i for i, mask in zip(free, found) if any(floors) and int(mask.count_nonzero()) < min(floors[i], living[i])
        ]
        if not short:
            masks |= zip(free, found)
            break
        for i in short:  # the threshold of the others only rises, so these remain below their floors
            (masks[i],) = _top([scores[i]], [alive[i]], [living[i]], floors[i])
            keep -= min(floors[i], living[i])
        free = [i for i in free if i not in short]
    return [masks[i] for i in range(len(scores))]


def keep_top_by_row(scores: Tensor, alive: Tensor | None, keep: int, dim: int = 0) -> Tensor:
    """Return a bool mask of ``keep`` entries, equally many of each row (its largest); the first rows get the remainder.

    A row with fewer alive entries than its share keeps those, and the others share the rest.

    Args:
        scores: any shape.
        alive: bool, of the same shape, or None if all entries are alive.
        keep: total number of entries to keep, at most the number of alive ones.
        dim: the dimension that indexes rows.

    Example:
        >>> keep_top_by_row(torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 3.0]]), None, 3)
        tensor([[ True,  True, False],
                [False, False,  True]])
    """
    moved = scores.movedim(dim, 0)
    rows = moved.flatten(1)
    living = torch.ones_like(rows, dtype=torch.bool) if alive is None else alive.movedim(dim, 0).flatten(1)
    quota = _equal_shares(living.sum(1), keep)
    kept, ranks = torch.zeros_like(living), torch.arange(rows.shape[1], device=rows.device)
    at_once = max(1, _MOST // max(1, rows.shape[1]))  # a sort takes several times the memory of what it sorts
    parts = (torch.split(each, at_once) for each in (rows, living, quota, kept))
    for part, alive_part, quota_part, out in zip(*parts):
        order = part.masked_fill(~alive_part, -math.inf).sort(dim=1, descending=True, stable=True).indices
        out.scatter_(1, order, ranks < quota_part.unsqueeze(1))
    return kept.view(moved.shape).movedim(0, dim).contiguous()


def _equal_shares(caps: Tensor, total: int) -> Tensor:
    """Divide ``total`` into equal whole parts of at most their caps; the first get the remainder."""
    shares = torch.zeros_like(caps)
    while total > 0:
        free = (shares < caps).nonzero().squeeze(1)
        if not free.numel():
            break
        part, rest = divmod(total, free.numel())
        offer = torch.full_like(free, part)
        offer[:rest] += 1
        taken = torch.minimum(offer, caps[free] - shares[free])
        shares[free] += taken
        total -= int(taken.sum())
    return shares


def _top(
    scores: Sequence[Callable[[], Tensor]], alive: Sequence[Tensor | None], living: Sequence[int], keep: int
) -> list[Tensor]:
    """Return masks of the ``keep`` largest alive scores of all tensors."""
    total = sum(living)
    if keep >= total:
        return [torch.ones_like(s(), dtype=torch.bool) if a is None else a.clone() for s, a in zip(scores, alive)]
    if keep <= 0:
        return [torch.zeros_like(s(), dtype=torch.bool) for s in scores]
    rank = total - keep
    for spread in (4.0, 40.0, math.inf):  # a bracket that misses is widened, at last to all scores
        low, high = _bracket(scores, alive, living, rank, spread)
        # Masks are allocated first: between short-lived temporaries they would fragment the memory.
        empty = [torch.empty(n if a is None else a.numel(), dtype=torch.bool) for a, n in zip(alive, living)]
        found = [_Candidates(score, a, mask, low, high) for score, a, mask in zip(scores, alive, empty)]
        inside = sum(each.values.numel() for each in found)
        drop = rank - (total - sum(each.above for each in found))  # entries above low that are not in the top
        _drop_least(found, min(max(drop, 0), inside))
        left = 0
        if drop < 0:  # the threshold equals low, unless the bracket missed
            left = _move_ties(found, low, -drop, keep=True)
        elif drop > inside:  # the threshold equals high
            left = _move_ties(found, high, drop - inside, keep=False)
        if left == 0:
            return [each.mask for each in found]
    raise AssertionError("the widest bracket holds every score")  # pragma: no cover


class _Candidates:
    """Mask of one tensor's scores above a bracket's lower bound, and the candidates inside the bracket.

    Attributes:
        mask: the alive scores above ``low``, in the scores' shape, contiguous.
        above: their number.
        places, values: flat indices and scores of those below ``high``.
    """

    def __init__(
        self, score: Callable[[], Tensor], alive: Tensor | None, above: Tensor, low: float, high: float
    ) -> None:
        self._score, self._alive = score, alive
        scores = score()
        flat = _exact(_exact(scores.reshape(-1), low), high)
        above = torch.gt(
            flat, low, out=above if above.device == flat.device else torch.empty_like(above, device=flat.device)
        )
        if alive is not None:
            above &= alive.reshape(-1)
        self.mask = above.view(scores.shape)
        self.above = int(above.count_nonzero())
        self.places = (flat < high).logical_and_(above).nonzero().squeeze(1)
        self.values = flat[self.places].float() if flat.itemsize < 4 else flat[self.places]

    def equal_to(self, value: float) -> Tensor:
        """Return a flat bool tensor of the alive scores equal to ``value``."""
        ties = _exact(self._score().reshape(-1), value) == value
        return ties if self._alive is None else ties.logical_and_(self._alive.reshape(-1))


def _drop_least(candidates: Sequence[_Candidates], count: int) -> None:
    """Remove the ``count`` smallest candidates from the masks; of equal ones the last."""
    if count == 0:
        return
    device = candidates[0].values.device
    values = torch.cat([each.values.to(device) for each in candidates])
    threshold = values.kthvalue(count).values
    drop = values < threshold
    ties = (values == threshold).nonzero().squeeze(1)
    drop[ties[ties.numel() - (count - int(drop.count_nonzero())) :]] = True
    for each, gone in zip(candidates, torch.split(drop, [each.values.numel() for each in candidates])):
        each.mask.view(-1)[each.places[gone.to(each.places.device)]] = False


def _move_ties(candidates: Sequence[_Candidates], value: float, count: int, keep: bool) -> int:
    """Keep the first ``count`` scores equal to ``value``, or drop the last ``count``; return how many are missing."""
    for each in candidates if keep else reversed(candidates):
        if count == 0:
            break
        ties = each.equal_to(value)
        found = int(ties.count_nonzero())
        if found > count:
            places = ties.nonzero().squeeze(1)
            ties[places[count:] if keep else places[:-count]] = False
        mask = each.mask.view(-1)
        torch.logical_or(mask, ties, out=mask) if keep else torch.logical_and(mask, ties.logical_not_(), out=mask)
        count -= min(found, count)
    return count


def _exact(values: Tensor, threshold: float) -> Tensor:
    """Return ``values`` in a dtype that represents ``threshold``: float32 and float64 scores may be ranked together."""
    held = torch.tensor(threshold, dtype=values.dtype).item() == threshold
    return values if held else values.double()


def _bracket(
    scores: Sequence[Callable[[], Tensor]],
    alive: Sequence[Tensor | None],
    living: Sequence[int],
    rank: int,
    spread: float,
) -> tuple[float, float]:
    """Return bounds of the ``rank``-th smallest score, ``spread`` standard errors to both sides, from a sample."""
    total = sum(living)
    if total <= _LEAST or spread == math.inf:
        return -math.inf, math.inf
    # The sample size balances the work on the sample and on the candidates. An odd stride avoids aliasing with
    # dimensions, which are often powers of two.
    stride = total // min(max(total // 32, _LEAST), _MOST) | 1
    entries = sum(n if mask is None else mask.numel() for mask, n in zip(alive, living))
    room, n = None, 0  # one tensor for the whole sample: many small ones would fragment the memory
    for score, mask in zip(scores, alive):
        values = score().reshape(-1)[::stride]
        if room is None:
            room = values.new_empty(entries // stride + len(alive), dtype=torch.float64)
        if mask is not None:
            values = values[mask.reshape(-1)[::stride]]
        room[n : n + values.numel()] = values
        n += values.numel()
    assert room is not None
    sample = room[:n]
    p = rank / total
    margin = spread * math.sqrt(max(n * p * (1 - p), 1.0)) + 2
    first, last = math.floor(n * p - margin), math.ceil(n * p + margin)
    low = float(sample.kthvalue(first).values) if first >= 1 else -math.inf
    high = float(sample.kthvalue(last).values) if last <= n else math.inf
    return low, high
