"""The exact top-k of many tensors as one, without gathering them.

A sample brackets the threshold, one pass counts and collects the few scores inside the bracket, their order statistic
is the threshold, and a last pass cuts. Ties at the threshold go to the lowest positions. Beyond the masks it needs one
tensor's scores at a time and about one score in a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

_SAMPLE = 1 << 18


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
        short = [i for i, mask in zip(free, cut) if floors and int(mask.count_nonzero()) < min(floors[i], living[i])]
        if not short:
            masks |= zip(free, cut)
            break
        for i in short:  # the others' threshold only rises, so these stay at their floors
            (masks[i],) = _cut([scores[i]], [alive[i]], [living[i]], floors[i])
            keep -= min(floors[i], living[i])
        free = [i for i in free if i not in short]
    return [masks[i] for i in range(len(scores))]


def _cut(
    scores: Sequence[Callable[[], Tensor]], alive: Sequence[Tensor | None], living: Sequence[int], keep: int
) -> list[Tensor]:
    total = sum(living)
    if keep >= total:
        return [torch.ones_like(s(), dtype=torch.bool) if a is None else a.clone() for s, a in zip(scores, alive)]
    if keep <= 0:
        return [torch.zeros_like(s(), dtype=torch.bool) for s in scores]
    threshold = _order_statistic(scores, alive, total, total - keep)
    masks = []
    for score, living_here in zip(scores, alive):
        mask = _exact(score(), threshold) > threshold
        masks.append(mask if living_here is None else mask.logical_and_(living_here))
    left = keep - sum(_counts(masks))
    for score, living_here, mask in zip(scores, alive, masks):
        if left <= 0:
            break
        ties = _exact(score(), threshold) == threshold
        if living_here is not None:
            ties &= living_here
        left -= _add_first(mask, ties, left)
    return masks


def _add_first(mask: Tensor, ties: Tensor, most: int) -> int:
    """Set in ``mask`` the first ``most`` entries of ``ties``; return how many there were to set."""
    count = int(ties.count_nonzero())
    if count > most:
        first = ties.flatten().nonzero().squeeze(1)[:most]
        ties = torch.zeros_like(ties, memory_format=torch.contiguous_format)
        ties.view(-1)[first] = True
    mask |= ties
    return min(count, most)


def _exact(values: Tensor, threshold: float) -> Tensor:
    """Return ``values`` in a type that holds ``threshold``: float32 scores may compete with float64 ones."""
    held = torch.tensor(threshold, dtype=values.dtype).item() == threshold
    return values if held else values.double()


def _counts(masks: Iterable[Tensor]) -> list[int]:
    return [int(count) for count in [mask.count_nonzero() for mask in masks]]


def _order_statistic(
    scores: Sequence[Callable[[], Tensor]], alive: Sequence[Tensor | None], total: int, rank: int
) -> float:
    """Return the ``rank``-th smallest living score, 1 ≤ rank ≤ total."""
    for spread in (4.0, 40.0, math.inf):  # a sample that misses is widened; at last everything is collected
        low, high = _bracket(scores, alive, total, rank, spread)
        above_low, inside = 0, []
        for score, living_here in zip(scores, alive):
            values = _exact(_exact(score(), low), high)
            above = values > low
            if living_here is not None:
                above &= living_here
            above_low += int(above.count_nonzero())
            inside.append(values[above.logical_and_(values < high)])
        candidates = torch.cat([values.to(inside[0].device) for values in inside])
        at_most_low = total - above_low
        if at_most_low < rank <= at_most_low + candidates.numel():
            return float(candidates.kthvalue(rank - at_most_low).values)
        for edge in (low, high):
            if _is_at(scores, alive, edge, rank):
                return edge
    raise AssertionError("the widest bracket holds every score")  # pragma: no cover


def _is_at(scores: Sequence[Callable[[], Tensor]], alive: Sequence[Tensor | None], value: float, rank: int) -> bool:
    """Whether ``value`` is the ``rank``-th smallest living score: the ties of a bracket's edge."""
    below = equal = 0
    for score, living_here in zip(scores, alive):
        values = _exact(score() if living_here is None else score()[living_here], value)
        below += int((values < value).count_nonzero())
        equal += int((values == value).count_nonzero())
    return below < rank <= below + equal


def _bracket(
    scores: Sequence[Callable[[], Tensor]], alive: Sequence[Tensor | None], total: int, rank: int, spread: float
) -> tuple[float, float]:
    """Return scores that lie ``spread`` standard errors to both sides of the ``rank``-th smallest, by a sample."""
    if total <= _SAMPLE or spread == math.inf:
        return -math.inf, math.inf
    stride = total // _SAMPLE | 1  # odd: in step with no power of two
    picked = []
    for score, living_here in zip(scores, alive):
        values = score().reshape(-1)[::stride].clone()  # not a view, which would hold all the scores
        picked.append(values if living_here is None else values[living_here.reshape(-1)[::stride]])
    sample = torch.cat([values.to(picked[0].device) for values in picked])
    n, p = sample.numel(), rank / total
    margin = spread * math.sqrt(max(n * p * (1 - p), 1.0)) + 2
    first, last = math.floor(n * p - margin), math.ceil(n * p + margin)
    low = float(sample.kthvalue(first).values) if first >= 1 else -math.inf
    high = float(sample.kthvalue(last).values) if last <= n else math.inf
    return low, high
