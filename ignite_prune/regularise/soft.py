"""Differentiable masks and thresholds, for learning which weights to prune."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.bits import masked_copy_, zero_


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mask: Tensor, scores: Tensor) -> Tensor:
        return mask.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def straight_through(mask: Tensor, scores: Tensor) -> Tensor:
    """Return the mask as 0 and 1 in the dtype of ``scores``; the gradient is passed to ``scores`` unchanged.

    Args:
        mask: bool, True = kept.
        scores: the scores that the mask was computed from, of the same shape.

    Example:
        >>> scores = torch.tensor([2.0, -1.0], requires_grad=True)
        >>> kept = straight_through(scores > 0, scores)
        >>> (kept * torch.tensor([3.0, 5.0])).sum().backward()
        >>> kept.tolist(), scores.grad.tolist()
        ([1.0, 0.0], [3.0, 5.0])

    References:
        Bengio, Léonard, Courville, "Estimating or propagating gradients through stochastic neurons", 2013, arXiv
        1308.3432.
    """
    found: Tensor = _StraightThrough.apply(mask, scores)  # type: ignore[no-untyped-call]
    return found


def soft_mask(scores: Tensor, threshold: float | Tensor, temperature: float) -> Tensor:
    r"""Return the soft mask :math:`\sigma((S - \tau) / T)`, in (0, 1); close to 0 and 1 at a low temperature.

    Args:
        scores: any shape, larger = keep.
        threshold: :math:`\tau`; a tensor gets a gradient.
        temperature: :math:`T`, above 0.

    Raises:
        ValueError: ``temperature`` is not above 0.

    Example:
        >>> soft_mask(torch.tensor([0.0, 1.0, 2.0]), 1.0, temperature=0.01)
        tensor([0.0000, 0.5000, 1.0000])
    """
    if not temperature > 0:
        raise ValueError(f"Argument temperature should be above 0, but given {temperature!r}")
    return torch.sigmoid((scores - threshold) / temperature)


def soft_threshold(weight: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Return :math:`\mathrm{sign}(W) \max(0, |W| - t)`, with gradients to both.

    Args:
        weight: any shape.
        threshold: at least 0; a tensor gets a gradient.

    Example:
        >>> soft_threshold(torch.tensor([3.0, -1.0, 0.5]), 1.0)
        tensor([2., -0., 0.])
    """
    return weight.sign() * torch.relu(weight.abs() - threshold)


def shrunk(weight: Tensor, threshold: Tensor) -> Tensor:
    """Return :func:`soft_threshold` of a threshold of no dimensions, on the CPU in half of the time.

    Values and gradients are the same to the bit, but for the sign of zeros.

    Example:
        >>> shrunk(torch.tensor([3.0, -1.5, 0.5]), torch.tensor(1.0))
        tensor([ 2.0000, -0.5000,  0.0000])
    """
    on_cpu = weight.is_cpu and threshold.is_cpu and weight.dtype == threshold.dtype
    if not (on_cpu and float(threshold.detach()) >= 0):
        return soft_threshold(weight, threshold)
    found: Tensor = _Shrunk.apply(weight, threshold)  # type: ignore[no-untyped-call]
    return found


class _Shrunk(torch.autograd.Function):
    """One pass forward, and the gradients written out."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, threshold: Tensor) -> Tensor:
        found = torch.nn.functional.softshrink(weight, float(threshold))
        ctx.save_for_backward(weight, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (weight, found) = gradients, ctx.saved_tensors
        kept, dims = found != 0, tuple(range(weight.dim()))
        if torch.is_grad_enabled():
            of_weight = torch.where(kept, gradient, 0.0)
            return of_weight, -(of_weight * weight.sign()).sum(dims)
        signed = zero_(weight.sign().mul_(gradient), kept).neg_()
        of_threshold = signed.sum(dims) if dims else signed.clone()
        return masked_copy_(signed, gradient, kept).add_(0.0), of_threshold  # makes 0.0 of -0.0
