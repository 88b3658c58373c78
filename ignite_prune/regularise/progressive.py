"""From one mask to the next in small steps."""

from __future__ import annotations

from torch import Tensor

from ignite_prune._utils.topk import keep_top


def part_way(before: Tensor, after: Tensor, scores: Tensor, share: float) -> Tensor:
    """Return a mask between two: of the entries that are to be pruned, a share is, the least scores first.

    Four sub-steps are shares of 1/4, 1/3, 1/2 and 1, each from the mask that the last one left. Entries that come back
    are back at once.

    Args:
        before: bool, True = kept.
        after: the mask to arrive at, of the same shape.
        scores: of that shape, larger = keep longer.
        share: in [0, 1], of the entries kept in ``before`` and pruned in ``after``; rounded half to even.

    Raises:
        ValueError: a share outside [0, 1], or scores that are not finite.

    Example:
        >>> import torch
        >>> before, after = torch.tensor([True] * 4), torch.tensor([True, False, False, False])
        >>> part_way(before, after, torch.tensor([0.1, 3.0, 2.0, 4.0]), share=1 / 3)
        tensor([ True,  True, False,  True])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"Argument share should be in [0, 1], but given {share!r}")
    going = before & ~after
    count = int(going.count_nonzero())
    if not count or share == 1:
        return after.clone()
    if not scores[going].isfinite().all():
        raise ValueError("Argument scores should be finite where entries are to be pruned")
    (staying,) = keep_top([lambda: scores], [going], [count], count - round(share * count))
    return after | staying
