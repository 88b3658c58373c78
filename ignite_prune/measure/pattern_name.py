"""The pattern that a mask has, by name."""

from __future__ import annotations

import torch
from torch import Tensor

_GROUPS = (4, 8, 16)
_BLOCKS = (32, 16, 8, 4, 2)
_FEW = 16  # fewer groups may be alike by chance


def pattern_name(mask: Tensor) -> str:
    """Return the pattern of a mask (bool, True = kept): what its kept entries have in common.

    Returns:
        ``"dense"``, ``"empty"``, ``"rows"`` (whole slices of dimension 0), ``"columns"`` (of dimension 1),
        ``"blocks 4x4"`` (of the first two dimensions), ``"2:4"`` (each group of 4 along dimension 1 keeps 2),
        ``"2:4, dim=0"``, or ``"unstructured"``.

    Example:
        >>> pattern_name(torch.eye(4, dtype=torch.bool).repeat(8, 1))
        '1:4'
    """
    if bool(mask.all()):
        return "dense"
    if not bool(mask.any()):
        return "empty"
    if mask.dim() < 2:
        return "unstructured"
    if _constant(mask.flatten(1)):
        return "rows"
    if _constant(mask.transpose(0, 1).flatten(1)):
        return "columns"
    for size in _BLOCKS:
        if mask.shape[0] % size == 0 and mask.shape[1] % size == 0:
            tiles = mask.reshape(mask.shape[0] // size, size, mask.shape[1] // size, size, -1)
            if bool((tiles == tiles[:, :1, :, :1]).all()):
                return f"blocks {size}x{size}"
    for dim in (1, 0):
        for of in _GROUPS:
            if mask.shape[dim] % of == 0:
                counts = torch.unflatten(mask.movedim(dim, -1), -1, (-1, of)).sum(-1)
                keep = int(counts.flatten()[0])
                if 0 < keep < of and counts.numel() >= _FEW and bool((counts == keep).all()):
                    return f"{keep}:{of}" if dim == 1 else f"{keep}:{of}, dim=0"
    return "unstructured"


def _constant(rows: Tensor) -> bool:
    return bool((rows == rows[:, :1]).all())
