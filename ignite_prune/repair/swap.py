r"""DSnoT: swap pruned entries for kept ones until each output's expected error is small. No weight is changed.

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
    r"""Return a mask with as many entries in each row and an expected error no larger.

    A row's error is :math:`\epsilon = \sum_{j\ \mathrm{pruned}} w_j E[x_j]`. In each cycle a row grows the pruned entry
    with the largest :math:`\mathrm{sign}(\epsilon)\, w_j E[x_j] / \mathrm{Var}[x_j]` and prunes the kept one with the
    least Wanda score :math:`|w_j| \|x_j\|` of those that oppose :math:`\epsilon`. It stops where :math:`|\epsilon|` is
    at most ``threshold``, would not fall, or an entry is lacking. No entry moves twice. (The published program also
    stops before :math:`\epsilon` changes its sign.) It helps where inputs have means; without them it does harm.

    Args:
        weight2d: ``(rows, n)``, dense: what is pruned has its value still.
        mask2d: bool, of its shape, True = kept.
        mean_x: ``(n,)``, each input's mean. The published program sums over a sequence, so that its threshold is in
            units of tokens times ours.
        var_x: ``(n,)``, its variance.
        norm_x: ``(n,)``, its Euclidean norm over the samples, or any multiple.
        cycles: swaps a row at the most.
        threshold: in the output's unit, at least 0.
        allowed: bool ``(rows, n)``, True = may be grown; None where all may.

    Raises:
        TypeError: a mask that is not bool.
        ValueError: shapes that do not fit, negative ``cycles`` or ``threshold``, weights or statistics not finite.

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
    ways = []
    for effects, gains in ((effect, gain), (-effect, -gain)):
        worth = gains.masked_fill(~(growable & (effects > 0)), -torch.inf)
        price = cost.masked_fill(~(kept & (effects < 0)), torch.inf)
        ways.append(_Way.ordered(effects, worth, price, min(cycles, effect.shape[1])))
    for way, count in zip(ways, _count_swaps(error, ways, cycles, threshold)):
        done = torch.arange(way.grown.shape[1], device=count.device) < count[:, None]
        at, step = done.nonzero(as_tuple=True)
        new[rows[at], way.grown[at, step]] = True
        new[rows[at], way.pruned[at, step]] = False
    return new


@dataclass(frozen=True)
class _Way:
    """The swaps that bring errors of one sign down, in the order that a row makes them.

    Attributes:
        grown, pruned: columns, ``(rows, k)``.
        fall: by how much each swap lowers the error, float64; 0 where no swap is left.
    """

    grown: Tensor
    pruned: Tensor
    fall: Tensor

    @classmethod
    def ordered(cls, effect: Tensor, worth: Tensor, price: Tensor, k: int) -> _Way:
        """Pair the ``k`` of most worth (-inf: none) with those of least price (inf: none)."""
        grown = worth.sort(dim=1, descending=True, stable=True).indices[:, :k]
        # Turned round, so that among equals the later is pruned.
        pruned = effect.shape[1] - 1 - price.flip(1).sort(dim=1, stable=True).indices[:, :k]
        none = (worth.gather(1, grown) == -torch.inf) | (price.gather(1, pruned) == torch.inf)
        fall = effect.gather(1, grown).double() - effect.gather(1, pruned).double()
        return cls(grown, pruned, fall.masked_fill_(none, 0))


def _count_swaps(error: Tensor, ways: list[_Way], cycles: int, threshold: float) -> list[Tensor]:
    """Return how many swaps each row makes of each way, ``(rows,)`` each."""
    falls = torch.stack([way.fall for way in ways], dim=1)  # (rows, 2, k)
    falls = torch.cat([falls, falls.new_zeros(len(error), 2, 1)], dim=2)  # the end: no swap left
    made = torch.zeros(len(error), 2, dtype=torch.int64, device=error.device)
    active = torch.ones_like(error, dtype=torch.bool)
    for _ in range(cycles):
        way = (error < 0).long().unsqueeze(1)
        fall = falls.gather(2, made.unsqueeze(2)).squeeze(2).gather(1, way).squeeze(1)
        after = error - torch.where(way.squeeze(1) == 0, fall, -fall)
        active &= (error.abs() > threshold) & (after.abs() < error.abs())
        if not bool(active.any()):
            break
        error = torch.where(active, after, error)
        made.scatter_add_(1, way, active.long().unsqueeze(1))
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
