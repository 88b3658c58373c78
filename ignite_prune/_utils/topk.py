"""The exact top-k of many tensors as one, without gathering them.

A sample brackets the threshold, one pass masks what lies above the bracket and collects the few candidates inside it,
and the least of those are taken out of the masks. Ties go to the lowest positions. Beyond the masks it needs one
tensor's scores at a time and about one score in a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_LEAST, _MOST = 1 << 12, 1 << 18  # scores in a sample


def keep_top(
    scores: Sequence[Callable[[], Tensor]],
    alive: Sequence[Tensor | None],
    living: Sequence[int],
    keep: int,
    floors: Sequence[int] = (),
) -> list[Tensor]:
    """Return bool masks of the ``keep`` largest scores that are alive, at least ``floors[i]`` in tensor i.

    Args:
        scores: give the score tensors; called a few times each, with equal answers, finite, not NaN.
        alive: bool tensors of the scores' shapes, or None where every entry is alive.
        living: how many are alive in each.
        keep: how many to keep of all; all that are alive where fewer are.
        floors: how many each keeps at the least, or all that are alive.

    Returns:
        Masks in the scores' shapes. Among equal scores the earlier tensor, then the lower flat index, is kept.

    Example:
        >>> a, b = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([2.0, 0.0])
        >>> keep_top([lambda: a, lambda: b], [None, None], [3, 2], keep=2)
        [tensor([False,  True,  True]), tensor([False, False])]
    """
    masks: dict[int, Tensor] = {}
    free = list(range(len(scores)))
    while free:
        cut = _cut([scores[i] for i in free], [alive[i] for i in free], [living[i] for i in free], keep)
        short = [
            i for i, mask in zip(free, cut) if any(floors) and int(mask.count_nonzero()) < min(floors[i], living[i])
        ]
        if not short:
            masks |= zip(free, cut)
            break
        for i in short:  # the others' threshold only rises, so these stay at their floors
            (masks[i],) = _cut([scores[i]], [alive[i]], [living[i]], floors[i])
            keep -= min(floors[i], living[i])
        free = [i for i in free if i not in short]
    return [masks[i] for i in range(len(scores))]


def keep_top_by_row(scores: Tensor, alive: Tensor | None, keep: int, dim: int = 0) -> Tensor:
    """Return a bool mask of ``keep`` entries, the largest of each row; rows get equal numbers, the first the remainder.

    A row with fewer alive than its share keeps those, and the others share the rest.

    Args:
        scores: any shape.
        alive: bool, of that shape, or None where every entry is alive.
        keep: how many to keep of all; at most as many as are alive.
        dim: the dimension that numbers the rows.

    Example:
        >>> keep_top_by_row(torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 3.0]]), None, 3)
        tensor([[ True,  True, False],
                [False, False,  True]])
    """
    moved = scores.movedim(dim, 0)
    rows = moved.flatten(1)
    living = torch.ones_like(rows, dtype=torch.bool) if alive is None else alive.movedim(dim, 0).flatten(1)
    quota = _equal_shares(living.sum(1), keep)
    order = rows.masked_fill(~living, -math.inf).sort(dim=1, descending=True, stable=True).indices
    ranks = torch.arange(rows.shape[1], device=rows.device).expand_as(order)
    kept = torch.zeros_like(living).scatter_(1, order, ranks < quota.unsqueeze(1))
    return kept.view(moved.shape).movedim(0, dim).contiguous()


def _equal_shares(caps: Tensor, total: int) -> Tensor:
    """Divide ``total`` into equal whole parts, none above its cap; the first get the remainder."""
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


def _cut(
    scores: Sequence[Callable[[], Tensor]], alive: Sequence[Tensor | None], living: Sequence[int], keep: int
) -> list[Tensor]:
    total = sum(living)
    if keep >= total:
        return [torch.ones_like(s(), dtype=torch.bool) if a is None else a.clone() for s, a in zip(scores, alive)]
    if keep <= 0:
        return [torch.zeros_like(s(), dtype=torch.bool) for s in scores]
    rank = total - keep
    for spread in (4.0, 40.0, math.inf):  # a sample that misses is widened; at last everything is a candidate
        low, high = _bracket(scores, alive, living, rank, spread)
        # All masks first: between the passes' short-lived tensors they would leave holes that nothing else fits.
        empty = [torch.empty(n if a is None else a.numel(), dtype=torch.bool) for a, n in zip(alive, living)]
        passes = [_Pass(score, a, mask, low, high) for score, a, mask in zip(scores, alive, empty)]
        inside = sum(each.values.numel() for each in passes)
        drop = rank - (total - sum(each.above for each in passes))  # of what lies above low
        _drop_least(passes, min(max(drop, 0), inside))
        left = 0
        if drop < 0:  # the threshold is low itself, unless the sample missed
            left = _move_ties(passes, low, -drop, keep=True)
        elif drop > inside:  # it is high itself
            left = _move_ties(passes, high, drop - inside, keep=False)
        if left == 0:
            return [each.mask for each in passes]
    raise AssertionError("the widest bracket holds every score")  # pragma: no cover


class _Pass:
    """One tensor's mask of all that lies above a bracket, and the candidates inside it.

    Attributes:
        mask: what lies above ``low``, of the scores' shape, contiguous.
        above: how many those are.
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
        """Return where living scores equal ``value``, flat."""
        ties = _exact(self._score().reshape(-1), value) == value
        return ties if self._alive is None else ties.logical_and_(self._alive.reshape(-1))


def _drop_least(passes: Sequence[_Pass], count: int) -> None:
    """Take the ``count`` least candidates out of the masks; of equal ones the last."""
    if count == 0:
        return
    device = passes[0].values.device
    values = torch.cat([each.values.to(device) for each in passes])
    threshold = values.kthvalue(count).values
    drop = values < threshold
    ties = (values == threshold).nonzero().squeeze(1)
    drop[ties[ties.numel() - (count - int(drop.count_nonzero())) :]] = True
    for each, gone in zip(passes, torch.split(drop, [each.values.numel() for each in passes])):
        each.mask.view(-1)[each.places[gone.to(each.places.device)]] = False


def _move_ties(passes: Sequence[_Pass], value: float, count: int, keep: bool) -> int:
    """Keep the first ``count`` scores equal to ``value``, or drop the last; return how many there were too few."""
    for each in passes if keep else reversed(passes):
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
    """Return ``values`` in a type that holds ``threshold``: float32 scores may compete with float64 ones."""
    held = torch.tensor(threshold, dtype=values.dtype).item() == threshold
    return values if held else values.double()


def _bracket(
    scores: Sequence[Callable[[], Tensor]],
    alive: Sequence[Tensor | None],
    living: Sequence[int],
    rank: int,
    spread: float,
) -> tuple[float, float]:
    """Return scores that lie ``spread`` standard errors to both sides of the ``rank``-th smallest, by a sample."""
    total = sum(living)
    if total <= _LEAST or spread == math.inf:
        return -math.inf, math.inf
    # Its size weighs the work on the sample against that on the candidates. Odd: in step with no power of two.
    stride = total // min(max(total // 32, _LEAST), _MOST) | 1
    entries = sum(n if mask is None else mask.numel() for mask, n in zip(alive, living))
    room, n = None, 0  # one tensor for all: small ones between large would leave holes in memory
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
