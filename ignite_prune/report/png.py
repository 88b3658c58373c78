"""PNG images of masks, without an imaging library."""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

from ignite_prune.loggers.picture import mask_picture
from ignite_prune.report.findings import Picture


def picture_of(name: str, mask: Tensor) -> Picture:
    """Return the picture of a mask, at most 224 pixels wide and high."""
    image = mask_picture(mask, largest=224, smallest=96)
    sparsity = 1 - int(mask.count_nonzero()) / max(mask.numel(), 1)
    return Picture(name, png(image), image.shape[2], image.shape[1], sparsity)


def png(image: Tensor) -> bytes:
    r"""Return an image as a PNG file with a palette of at most 256 colours.

    Args:
        image: float ``(3, height, width)`` in [0, 1].

    Example:
        >>> png(torch.zeros(3, 2, 2))[:4]
        b'\x89PNG'
    """
    _, height, width = image.shape
    colours = (image * 31).round().mul(255 / 31).round().to(torch.uint8).permute(1, 2, 0).reshape(-1, 3)
    palette, index = torch.unique(colours, dim=0, return_inverse=True)
    if len(palette) > 256:
        raise ValueError(f"An image should have at most 256 colours, but it has {len(palette)}")
    rows = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), index.view(height, width).to(torch.uint8)], 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", _bytes(palette)), (b"IDAT", zlib.compress(_bytes(rows), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*each) for each in parts)


def _bytes(values: Tensor) -> bytes:
    return bytes(values.reshape(-1).tolist())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
