"""Masks as bits: packed to one bit an entry, and laid over a tensor without arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def zero_(tensor: Tensor, mask: Tensor) -> Tensor:
    """Make every entry of ``tensor`` whose mask is False exactly 0, in place.

    The tensor's bits are multiplied as whole numbers: NaN, infinity and −0.0 become 0.0 as well (a float product would
    keep them), and it is twice as fast. A tensor that takes part in autograd is multiplied as it is.

    Example:
        >>> zero_(torch.tensor([float("nan"), -1.0, 2.0]), torch.tensor([False, False, True]))
        tensor([0., 0., 2.])
    """
    if tensor.requires_grad and torch.is_grad_enabled():
        return tensor.mul_(mask)
    bits = _SAME_SIZE.get(tensor.element_size())
    if bits is None:  # complex128
        return tensor.detach().masked_fill_(~mask, 0)
    tensor.detach().view(bits).mul_(mask)
    return tensor


def masked_copy_(target: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
    """Copy ``source`` into ``target``, exactly 0 where the mask is False, in one pass where both lie alike in memory.

    Example:
        >>> masked_copy_(torch.ones(3), torch.tensor([float("nan"), -1.0, 2.0]), torch.tensor([False, False, True]))
        tensor([0., 0., 2.])
    """
    bits = _SAME_SIZE.get(target.element_size())
    alike = target.dtype == source.dtype and target.device == source.device and target.stride() == source.stride()
    if mask is None or bits is None or not alike:
        target.detach().copy_(source)
        return target if mask is None else zero_(target.detach(), mask)
    torch.mul(source.detach().view(bits), mask, out=target.detach().view(bits))
    return target


def zero_any_(tensor: Tensor, mask: Tensor) -> None:
    """:func:`zero_` for tensors that may be sparse, as gradients of embeddings are: only stored rows are touched."""
    if tensor.is_sparse:
        zero_(tensor._values(), mask[tuple(tensor._indices())])
    else:
        zero_(tensor, mask)


def pack(mask: Tensor) -> Tensor:
    """Pack a bool tensor to uint8, eight entries a byte, the first in the lowest bit; on the CPU.

    Example:
        >>> pack(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    flat = mask.reshape(-1)
    whole = flat.numel() // 8 * 8
    packed = _pack_whole(flat[:whole])
    if whole < flat.numel():
        rest = flat.new_zeros(8)
        rest[: flat.numel() - whole] = flat[whole:]
        packed = torch.cat([packed, _pack_whole(rest)])
    return packed.cpu()


def _pack_whole(flat: Tensor) -> Tensor:
    columns = flat.view(torch.uint8).view(-1, 8)
    packed = columns[:, 0].clone()
    for bit in range(1, 8):
        packed.add_(columns[:, bit], alpha=1 << bit)
    return packed


def packed_size(entries: int) -> int:
    """Return how many bytes ``entries`` bits take."""
    return -(-entries // 8)


def unpack(packed: Tensor, entries: int) -> Tensor:
    """Undo :func:`pack`: a flat bool tensor of ``entries``, on the device of ``packed``.

    Example:
        >>> unpack(torch.tensor([5], dtype=torch.uint8), 3)
        tensor([ True, False,  True])
    """
    flat = torch.empty(packed.numel(), 8, dtype=torch.bool, device=packed.device)
    for bit in range(8):
        flat[:, bit] = packed.bitwise_and(1 << bit) != 0
    return flat.view(-1)[:entries].clone()
