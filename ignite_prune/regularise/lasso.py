"""Group lasso: a penalty on the norms of units, which drives whole units to zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ignite_prune.pattern import Pattern
from ignite_prune.regularise.units import Weights, WeightUnits, units_of

_LEAST = 1e-30  # smaller than every nonzero norm, because smaller squares underflow to 0 in float32


def norms(weight: Tensor, pattern: Pattern) -> Tensor:
    r"""Return the norm of each unit, 1-D: :math:`\|W_b\|_2`.

    Args:
        weight: floating point, any shape that the pattern supports.
        pattern: pattern that defines the units.

    Example:
        >>> from ignite_prune.pattern import Channel
        >>> norms(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), Channel(dim=0))
        tensor([5., 2.])
    """
    weight = weight.detach()
    return units_of("weight", weight, pattern).norms({"weight": weight}).flatten()


def gradient(weight: Tensor, pattern: Pattern, strength: float) -> Tensor:
    r"""Return the penalty's gradient, :math:`\alpha W_b / \|W_b\|_2`, 0 where the norm is 0; of the weight's shape.

    Args:
        weight: floating point, any shape that the pattern supports.
        pattern: pattern that defines the units.
        strength: :math:`\alpha`, at least 0.

    Example:
        >>> from ignite_prune.pattern import Channel
        >>> gradient(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), Channel(dim=0), strength=10.0)
        tensor([[6., 8.],
                [0., 0.]])

    References:
        Wen, Wu, Wang, Chen, Li, "Learning structured sparsity in deep neural networks", 2016, arXiv 1608.03665.
    """
    found = torch.zeros_like(weight, requires_grad=False)
    weight = weight.detach()
    add_gradients_(units_of("weight", weight, pattern), {"weight": weight}, {"weight": found}, {"weight": strength})
    return found


def proximal_(weight: Tensor, pattern: Pattern, threshold: float) -> Tensor:
    r"""Shrink each unit's norm by a threshold, in place, and return the weight.

    :math:`W_b \leftarrow \max(0, 1 - t / \|W_b\|_2)\, W_b`; after an optimizer step :math:`t = \eta\alpha`. Units with
    a norm of at most ``t`` become exactly 0.

    Args:
        weight: floating point, any shape that the pattern supports.
        pattern: pattern that defines the units.
        threshold: :math:`t`, at least 0.

    Example:
        >>> from ignite_prune.pattern import Channel
        >>> proximal_(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), Channel(dim=0), threshold=2.5)
        tensor([[1.5000, 2.0000],
                [0.0000, 0.0000]])

    References:
        Yuan, Lin, "Model selection and estimation in regression with grouped variables", 2006.
    """
    with torch.no_grad():
        shrink_(units_of("weight", weight, pattern), {"weight": weight}, {"weight": threshold})
    return weight


def penalty(units: WeightUnits, weights: Weights, by_size: bool = False) -> Tensor:
    """Return the sum of the unit norms, with ``by_size`` each times the square root of the unit's size."""
    norms = units.norms(weights)
    return (norms * _roots(units, weights, norms) if by_size else norms).sum()


def add_gradients_(
    units: WeightUnits,
    weights: Weights,
    gradients: Weights,
    strengths: Mapping[str, float | Tensor],
    by_size: bool = False,
) -> None:
    """Add the penalty's gradient to the given gradients, in place, each times its strength."""
    per_norm = _per_norm(units, weights, by_size)
    for name, gradient in gradients.items():
        units.add_(name, gradient, weights[name], per_norm * strengths[name])


def shrink_(
    units: WeightUnits, weights: Weights, thresholds: Mapping[str, float | Tensor], by_size: bool = False
) -> None:
    """Shrink the units in the weights of ``thresholds``, in place; all use the norms from before the call."""
    per_norm = _per_norm(units, weights, by_size)
    for name, threshold in thresholds.items():
        units.scale_(name, weights[name], (per_norm * -threshold).add_(1).clamp_(min=0))


def _per_norm(units: WeightUnits, weights: Weights, by_size: bool) -> Tensor:
    """Return 1 / norm of each unit, multiplied by the root of its size if ``by_size``; finite for a norm of 0."""
    norms = units.norms(weights)
    roots = _roots(units, weights, norms) if by_size else None
    found = norms.clamp_(min=_LEAST).reciprocal_()
    return found if roots is None else found.mul_(roots)


def _roots(units: WeightUnits, weights: Weights, like: Tensor) -> Tensor:
    return units.sizes(weights).double().sqrt().to(like)
