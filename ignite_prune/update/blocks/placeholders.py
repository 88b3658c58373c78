"""Copies of nested tensors, and stand-ins for them that take no memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.nested import mapped


def cloned(value: Any) -> Any:
    """Return a value with copies of its tensors."""
    return mapped(value, lambda tensor: tensor.detach().clone())


def placeholder(value: Any) -> Any:
    """Return a value whose numbers are NaN (integers 0), of the same shapes and without memory."""
    return mapped(value, _unknown)


def _unknown(tensor: Tensor) -> Tensor:
    fill = torch.nan if tensor.is_floating_point() or tensor.is_complex() else 0
    return torch.full((), fill, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def without_numbers(value: Any) -> Any:
    """Return a value with placeholders of its floating-point tensors; others are as they were."""
    return mapped(value, lambda tensor: _unknown(tensor) if tensor.is_floating_point() else tensor)
