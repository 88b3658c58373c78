"""Functions that mask and prune single tensors, without a model or an engine.

``amount`` describes the result: an int is the number of pruned units of the pattern, a float their fraction (rounded
half to even), both including entries that ``mask`` already prunes. Entries pruned in ``mask`` stay pruned, so a smaller
amount has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from ignite_prune._utils.bits import zero_
from ignite_prune._utils.sparsity import as_sparsity, as_unit_fraction
from ignite_prune.allocation import Allocation, Layer, Pool
from ignite_prune.pattern import Pattern, Unstructured
from ignite_prune.saliency import Given, Magnitude
from ignite_prune.update.scores import ParameterScores, choose_masks


class _Exactly(Allocation):
    """An allocation for one tensor that keeps a given number of units."""

    def __init__(self, keep: int) -> None:
        self._keep = keep

    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        return [Pool(tuple(layers), self._keep)]


def mask(
    tensor: Tensor,
    amount: int | float,
    *,
    scores: Tensor | None = None,
    mask: Tensor | None = None,
    pattern: Pattern = Unstructured(),
) -> Tensor:
    """Return a mask that prunes ``amount`` of a tensor, smallest scores first; the tensor is not changed.

    Args:
        tensor: floating point, any shape.
        amount: number of pruned units (int) or sparsity in [0, 1] (float) of the result.
        scores: larger = keep; in the tensor's shape, or one per unit; None uses magnitudes.
        mask: the current mask, bool, in the tensor's shape.
        pattern: entries that are pruned together.

    Returns:
        Bool tensor in the tensor's shape, True = kept. Of equal scores the lower flat index is kept.

    Raises:
        TypeError: ``amount`` is not a number, ``tensor`` not floating point, or ``mask`` not bool.
        ValueError: ``amount`` is out of range, a shape does not match, or scores are not finite.

    Example:
        >>> mask(torch.tensor([3.0, -1.0, 2.0, 1.0]), 0.5)
        tensor([ True, False,  True, False])
    """
    _check(tensor, mask, pattern)
    units = pattern.count(tuple(tensor.shape))
    pruned = _pruned_units(amount, units, pattern)
    saliency = Magnitude() if scores is None else Given({"tensor": scores})
    computed = ParameterScores("tensor", tensor.detach(), saliency, pattern, mask)
    chosen = choose_masks({"tensor": computed}, _Exactly(units - pruned), 0.0)
    if "tensor" in chosen:
        return chosen["tensor"]
    return torch.ones_like(tensor, dtype=torch.bool, requires_grad=False) if mask is None else mask.clone()


def prune(
    tensor: Tensor,
    amount: int | float,
    *,
    scores: Tensor | None = None,
    mask: Tensor | None = None,
    pattern: Pattern = Unstructured(),
) -> Tensor:
    """Return a copy of ``tensor`` with the pruned entries exactly 0; gradients flow to the kept ones.

    Arguments and errors are those of :func:`mask`.

    Example:
        >>> prune(torch.tensor([3.0, -1.0, 2.0, 1.0]), 1)
        tensor([ 3., -1.,  2.,  0.])
    """
    kept = _mask(tensor, amount, scores=scores, mask=mask, pattern=pattern)
    return tensor.masked_fill(~kept, 0)


def prune_(
    tensor: Tensor,
    amount: int | float,
    *,
    scores: Tensor | None = None,
    mask: Tensor | None = None,
    pattern: Pattern = Unstructured(),
) -> Tensor:
    """Set the pruned entries of ``tensor`` to exactly 0, in place and outside autograd, and return it.

    Arguments and errors are those of :func:`mask`; if it raises, the tensor is unchanged.

    Example:
        >>> prune_(torch.tensor([3.0, -1.0, 2.0, 1.0]), 0.75)
        tensor([3., 0., 0., 0.])
    """
    kept = _mask(tensor, amount, scores=scores, mask=mask, pattern=pattern)
    with torch.no_grad():
        return zero_(tensor, kept)


_mask = mask  # prune and prune_ have an argument of this name


def _check(tensor: Tensor, mask: Tensor | None, pattern: Pattern) -> None:
    if not isinstance(tensor, Tensor) or tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError(f"Argument tensor should be a floating-point Tensor, but given {tensor!r:.80}")
    if not isinstance(pattern, Pattern):
        raise TypeError(f"Argument pattern should be one of ignite_prune.pattern, but given {pattern!r}")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"Argument mask should be a tensor of torch.bool (True = kept), but given {mask!r:.80}")
        if mask.shape != tensor.shape:
            raise ValueError(
                f"Argument mask should have the tensor's shape {tuple(tensor.shape)}, but given {tuple(mask.shape)}"
            )


def _pruned_units(amount: int | float, units: int, pattern: Pattern) -> int:
    if isinstance(amount, Integral) and not isinstance(amount, bool):
        if not 0 <= amount <= units:
            raise ValueError(f"Argument amount should be 0 to {units} units for this tensor, but given {amount}")
        return int(amount)
    return round(as_unit_fraction(pattern, as_sparsity(amount, "amount")) * units)
