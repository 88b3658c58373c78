"""Images of masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

_KEPT = (0.98, 0.83, 0.24)  # yellow on dark blue: distinguishable with any colour vision, and in greyscale
_PRUNED = (0.09, 0.09, 0.31)
_GRID = 0.5
_LONGEST = 4  # how long a picture may be, in widths


def mask_picture(mask: Tensor, largest: int = 512, smallest: int = 128) -> Tensor:
    """Return a mask as a colour image, with one row per output and one column per input.

    The kernels of a convolution are small tiles at (output, input), separated by lines if there is room. Masks larger
    than ``largest`` are pooled (the colour of a pixel then shows its density); small ones are magnified. The shorter
    side of a long mask is stretched until the picture is at most four times as long as wide.

    Args:
        mask: bool, any shape.
        largest: maximum number of pixels per side.
        smallest: number of pixels to which the longer side is magnified, by whole factors.

    Returns:
        Float tensor ``(3, height, width)`` in [0, 1], on the CPU.

    Example:
        >>> tuple(mask_picture(torch.ones(4, 2, 3, 3, dtype=torch.bool)).shape)
        (3, 123, 61)
    """
    tiles = _as_tiles(mask)
    rows, columns, height, width = tiles.shape
    density = tiles.permute(0, 2, 1, 3).reshape(rows * height, columns * width)
    density = adaptive_avg_pool2d(density[None], (min(largest, density.shape[0]), min(largest, density.shape[1])))[0]
    pooled = density.shape != (rows * height, columns * width)
    factor = max(1, min(smallest // max(density.shape), largest // (max(density.shape) + max(rows, columns))))
    down, across = (factor * stretch for stretch in _stretches(*density.shape))
    density = density.repeat_interleave(down, 0).repeat_interleave(across, 1)
    picture = torch.stack([density * kept + (1 - density) * pruned for kept, pruned in zip(_KEPT, _PRUNED)])
    if height * width > 1 and factor > 1 and not pooled:
        picture = _with_lines(_with_lines(picture, 1, height * down), 2, width * across)
    return picture.contiguous()


def _stretches(height: int, width: int) -> tuple[int, int]:
    """Return the whole factors by which the sides are stretched; one of them is 1."""
    return max(1, math.ceil(width / _LONGEST / height)), max(1, math.ceil(height / _LONGEST / width))


def _as_tiles(mask: Tensor) -> Tensor:
    """Return the mask as float ``(rows, columns, tile height, tile width)``."""
    values = mask.detach().cpu().float()
    if not values.numel():
        return torch.zeros(1, 1, 1, 1)
    if values.ndim < 2:  # folded to about a square
        flat = values.reshape(-1)
        side = max(1, math.isqrt(max(flat.numel() - 1, 0)) + 1)
        filled = torch.zeros(math.ceil(max(flat.numel(), 1) / side) * side)
        filled[: flat.numel()] = flat
        return filled.view(-1, side, 1, 1)
    kernel = values.shape[2:]
    width = kernel[-1] if kernel else 1
    return values.reshape(values.shape[0], values.shape[1], math.prod(kernel) // width if kernel else 1, width)


def _with_lines(picture: Tensor, dim: int, every: int) -> Tensor:
    """Insert grey lines between tiles of ``every`` pixels along ``dim``."""
    tiles = torch.split(picture, every, dim)
    line = torch.full_like(tiles[0].narrow(dim, 0, 1), _GRID)
    pieces = [tiles[0]]
    for tile in tiles[1:]:
        pieces += [line, tile]
    return torch.cat(pieces, dim)
