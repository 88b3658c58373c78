"""Differentiable masks and thresholds, for learning which weights to prune."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
