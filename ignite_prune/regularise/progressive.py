"""Progressive masks: the way from one mask to the next in several small steps."""

from __future__ import annotations

from torch import Tensor

from ignite_prune._utils.topk import keep_top


def part_way(before: Tensor, after: Tensor, scores: Tensor, share: float) -> Tensor:
    """Return a mask between two, in which a share of the entries to prune is pruned, those of least score first.

    Four steps use shares of 1/4, 1/3, 1/2 and 1, each from the mask of the previous step. Entries that ``after`` adds
    are added at once.

    Args:
        before: the current mask, bool, True = kept.
        after: the final mask, of the same shape.
        scores: scores of the same shape, larger = kept longer.
        share: fraction in [0, 1] of the entries kept in ``before`` and pruned in ``after``; their number is rounded
            half to even.

    Raises:
        ValueError: ``share`` is outside [0, 1], or scores are not finite.

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
