"""Scores as integers in the same order, and back."""

from __future__ import annotations

import torch
from torch import Tensor

_REST = 0x7FFFFFFFFFFFFFFF


def zero_bits(dtype: torch.dtype) -> int:
    """Return how many low bits of a float64 are 0 for every number of a type: keys need not hold them."""
    return {torch.float32: 29, torch.bfloat16: 45, torch.float16: 42}.get(dtype, 0)


def keys_of(values: Tensor, shift: int) -> Tensor:
    """Return int64 keys in the order of the values, without their ``shift`` low bits; −0.0 has the key of 0.0.

    Example:
        >>> keys = keys_of(torch.tensor([-1.0, -0.0, 0.0, 2.0]), 29)
        >>> bool(keys[0] < keys[1] == keys[2] < keys[3])
        True
    """
    bits = (values.double() + 0.0).view(torch.int64)
    return torch.where(bits < 0, bits ^ _REST, bits) >> shift


def key_of(bound: float, shift: int) -> int:
    """Return the key of one number."""
    return int(keys_of(torch.tensor([bound], dtype=torch.float64), shift))


def number_of(key: int, shift: int) -> float:
    """Return the number of a key.

    Example:
        >>> number_of(key_of(-1.5, 29), 29)
        -1.5
    """
    low = (1 << shift) - 1 if key < 0 else 0  # those of a negative number's bits are inverted
    bits = torch.tensor([(key << shift) | low], dtype=torch.int64)
    return float(torch.where(bits < 0, bits ^ _REST, bits).view(torch.float64))


def exact(values: Tensor, bound: float) -> Tensor:
    """Return ``values`` in a dtype that represents ``bound``: float32 and float64 scores may be ranked together."""
    held = torch.tensor(bound, dtype=values.dtype).item() == bound
    return values if held else values.double()
