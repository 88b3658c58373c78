"""Group lasso: the norms of whole units are penalised, so that units become zero as wholes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ignite_prune.pattern import Pattern
from ignite_prune.regularise.units import Units, Weights, units_of

_LEAST = 1e-30  # no norm above 0 is less, as a square that is less than the least float32 is 0


def norms(weight: Tensor, pattern: Pattern) -> Tensor:
    r"""Return each unit's norm, 1-D: :math:`\|W_b\|_2`.

    Args:
        weight: floating point, any shape that the pattern fits.
        pattern: which entries go together.

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
        weight: floating point, any shape that the pattern fits.
        pattern: which entries go together.
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

    :math:`W_b \leftarrow \max(0, 1 - t / \|W_b\|_2)\, W_b`; after an optimizer's step :math:`t = \eta\alpha`. Units of
    a norm up to ``t`` are exactly 0 then.

    Args:
        weight: floating point, any shape that the pattern fits.
        pattern: which entries go together.
        threshold: at least 0, in the weight's unit.

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


def penalty(units: Units, weights: Weights, by_size: bool = False) -> Tensor:
    """Return the sum of the units' norms, each times the root of its unit's size if asked for."""
    norms = units.norms(weights)
    return (norms * _roots(units, weights, norms) if by_size else norms).sum()


def add_gradients_(
    units: Units, weights: Weights, gradients: Weights, strengths: Mapping[str, float | Tensor], by_size: bool = False
) -> None:
    """Add the penalty's gradient to the gradients given, of some of the weights, each with its strength."""
    per_norm = _per_norm(units, weights, by_size)
    for name, gradient in gradients.items():
        units.add_(name, gradient, weights[name], per_norm * strengths[name])


def shrink_(units: Units, weights: Weights, thresholds: Mapping[str, float | Tensor], by_size: bool = False) -> None:
    """Shrink the units in the weights named, each by its threshold, all by the norms that they had before."""
    per_norm = _per_norm(units, weights, by_size)
    for name, threshold in thresholds.items():
        units.scale_(name, weights[name], (per_norm * -threshold).add_(1).clamp_(min=0))


def _per_norm(units: Units, weights: Weights, by_size: bool) -> Tensor:
    """Return one over each unit's norm, times the root of its size if asked for; large and finite for zeros."""
    norms = units.norms(weights)
    roots = _roots(units, weights, norms) if by_size else None
    found = norms.clamp_(min=_LEAST).reciprocal_()
    return found if roots is None else found.mul_(roots)


def _roots(units: Units, weights: Weights, like: Tensor) -> Tensor:
    return units.sizes(weights).double().sqrt().to(like)
