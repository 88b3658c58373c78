r"""DSnoT's swaps of pruned and kept entries, which reduce the expected error of each output without new weights.

References:
    Zhang et al., "Dynamic sparse no training: training-free fine-tuning for sparse LLMs", 2024, arXiv 2310.08915.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def swap(
    weight2d: Tensor,
    mask2d: Tensor,
    mean_x: Tensor,
    var_x: Tensor,
    norm_x: Tensor,
    *,
    cycles: int = 50,
    threshold: float = 0.1,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Return a mask with the same number of entries in each row and an expected error that is not larger.

    The error of a row is :math:`\epsilon = \sum_{j\ \mathrm{pruned}} w_j E[x_j]`. In each cycle a row grows the pruned
    entry with the largest :math:`\mathrm{sign}(\epsilon)\, w_j E[x_j] / \mathrm{Var}[x_j]` and prunes, among the kept
    entries whose :math:`w_j E[x_j]` has the opposite sign of :math:`\epsilon`, the one with the smallest Wanda score
    :math:`|w_j| \|x_j\|`. It stops if :math:`|\epsilon|` is at most ``threshold`` or would not decrease, or if there is
    no entry to swap. No entry is moved twice. (The published code also stops before :math:`\epsilon` changes its sign.)
    It helps if inputs have a nonzero mean, and does harm otherwise.

    Args:
        weight2d: dense weights, ``(rows, n)``, pruned entries with their values.
        mask2d: bool, ``(rows, n)``, True = kept.
        mean_x: ``(n,)``, mean of each input. The published code sums over a sequence, so its threshold is larger by the
            number of tokens.
        var_x: ``(n,)``, variance of each input.
        norm_x: ``(n,)``, Euclidean norm of each input over the samples, or any multiple.
        cycles: maximum number of swaps per row.
        threshold: in the output's unit, at least 0.
        allowed: bool ``(rows, n)``, True = may be grown; None if all may.

    Raises:
        TypeError: a mask is not bool.
        ValueError: the shapes do not match, ``cycles`` or ``threshold`` is negative, or weights or statistics are not
            finite.

    Example:
        >>> w, x = torch.tensor([[1.0, 2.0, -1.0]]), torch.ones(3)
        >>> swap(w, torch.tensor([[True, False, True]]), x, x, x)
        tensor([[ True,  True, False]])
    """
    _check_masks(weight2d, mask2d=mask2d, allowed=mask2d if allowed is None else allowed)
    _check_inputs(weight2d, mean_x=mean_x, var_x=var_x, norm_x=norm_x)
    if type(cycles) is not int or cycles < 0 or not threshold >= 0:
        raise ValueError(f"Arguments cycles and threshold should be at least 0, but given {cycles!r}, {threshold!r}")
    weight = weight2d.detach().to(torch.promote_types(weight2d.dtype, torch.float32))
    effect = weight * mean_x
    error = (effect * ~mask2d).sum(1, dtype=torch.float64)
    rows = (error.abs() > threshold).nonzero().squeeze(1)
    new = mask2d.clone()
    if cycles == 0 or rows.numel() == 0:
        return new
    effect, kept, error = effect[rows], mask2d[rows], error[rows]
    growable = ~kept if allowed is None else ~kept & allowed[rows]
    gain = effect / var_x.to(effect.dtype).clamp(min=torch.finfo(effect.dtype).tiny)
    cost = weight[rows].abs_() * norm_x
    by_sign = []
    for effects, gains in ((effect, gain), (-effect, -gain)):
        grow_scores = gains.masked_fill(~(growable & (effects > 0)), -torch.inf)
        prune_scores = cost.masked_fill(~(kept & (effects < 0)), torch.inf)
        by_sign.append(_Swaps.ordered(effects, grow_scores, prune_scores, min(cycles, effect.shape[1])))
    for swaps, count in zip(by_sign, _count_swaps(error, by_sign, cycles, threshold)):
        done = torch.arange(swaps.grown.shape[1], device=count.device) < count[:, None]
        at, step = done.nonzero(as_tuple=True)
        new[rows[at], swaps.grown[at, step]] = True
        new[rows[at], swaps.pruned[at, step]] = False
    return new


@dataclass(frozen=True)
class _Swaps:
    """Swaps that reduce errors of one sign, in the order in which a row makes them.

    Attributes:
        grown, pruned: columns, ``(rows, k)``.
        fall: reduction of the error by each swap, float64; 0 where no swap is left.
    """

    grown: Tensor
    pruned: Tensor
    fall: Tensor

    @classmethod
    def ordered(cls, effect: Tensor, grow_scores: Tensor, prune_scores: Tensor, k: int) -> _Swaps:
        """Pair the ``k`` largest ``grow_scores`` (-inf: none) with the ``k`` smallest ``prune_scores`` (inf: none)."""
        grown = grow_scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        # Flipped, so that the later of equal entries is pruned.
        pruned = effect.shape[1] - 1 - prune_scores.flip(1).sort(dim=1, stable=True).indices[:, :k]
        none = (grow_scores.gather(1, grown) == -torch.inf) | (prune_scores.gather(1, pruned) == torch.inf)
        fall = effect.gather(1, grown).double() - effect.gather(1, pruned).double()
        return cls(grown, pruned, fall.masked_fill_(none, 0))


def _count_swaps(error: Tensor, by_sign: list[_Swaps], cycles: int, threshold: float) -> list[Tensor]:
    """Return how many swaps each row makes for errors above and below 0, ``(rows,)`` each."""
    falls = torch.stack([swaps.fall for swaps in by_sign], dim=1)  # (rows, 2, k)
    falls = torch.cat([falls, falls.new_zeros(len(error), 2, 1)], dim=2)  # a sentinel: no swap is left
    made = torch.zeros(len(error), 2, dtype=torch.int64, device=error.device)
    active = torch.ones_like(error, dtype=torch.bool)
    for _ in range(cycles):
        sign = (error < 0).long().unsqueeze(1)
        fall = falls.gather(2, made.unsqueeze(2)).squeeze(2).gather(1, sign).squeeze(1)
        after = error - torch.where(sign.squeeze(1) == 0, fall, -fall)
        active &= (error.abs() > threshold) & (after.abs() < error.abs())
        if not bool(active.any()):
            break
        error = torch.where(active, after, error)
        made.scatter_add_(1, sign, active.long().unsqueeze(1))
    return list(made.unbind(1))


def _check_masks(weight: Tensor, **masks: Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("Argument weight2d should be finite")
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise TypeError(f"Argument {name} should be bool, but given {mask.dtype}")
        if weight.dim() != 2 or mask.shape != weight.shape:
            raise ValueError(
                f"Arguments weight2d and {name} should have one shape (rows, n), but given {tuple(weight.shape)} and "
                f"{tuple(mask.shape)}"
            )


def _check_inputs(weight: Tensor, **inputs: Tensor) -> None:
    for name, values in inputs.items():
        if values.shape != weight.shape[1:]:
            raise ValueError(
                f"Argument {name} should have the shape {tuple(weight.shape[1:])}, but given {tuple(values.shape)}"
            )
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"Argument {name} should be finite")
