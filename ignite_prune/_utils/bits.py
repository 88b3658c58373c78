"""Bit operations with masks: masking a tensor through its bits, and packing masks to one bit per entry.

Pruned entries have to be exactly 0.0, but a product with a mask keeps NaN and infinity (``nan * 0`` is NaN) and turns
-1.0 into -0.0, and ``masked_fill_`` with an inverted mask takes two passes. Multiplying the bits, viewed as integers,
by 0 or 1 gives 0.0 or the unchanged value for any content, in one pass: twice as fast as the float product.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ignite_prune._utils.shard import PLAIN, local

if TYPE_CHECKING:
    from types import ModuleType

_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE = 1 << 17  # entries that stay in a core's cache
_PRODUCT = 1 << 18  # entries of a product, of which some threads share the temporary
_BUFFER = 1 << 11  # entries of a temporary of NumPy's, which stays in the smallest cache


@cache
def _numpy() -> ModuleType | None:
    try:
        import numpy
    except ImportError:  # not a dependency of PyTorch
        return None
    return numpy


def numpy_for(tensor: Tensor) -> ModuleType | None:
    """Return NumPy where it is installed and can read the tensor, for what it does several times as fast as PyTorch."""
    plain = type(tensor) is Tensor and tensor.is_cpu and tensor.layout == torch.strided
    return _numpy() if plain and not tensor.requires_grad else None


def zero_(tensor: Tensor, mask: Tensor) -> Tensor:
    """Set every entry of ``tensor`` whose mask is False to exactly 0, in place.

    NaN, infinity and −0.0 become 0.0 too. A tensor that requires grad, with grad mode enabled, is multiplied as floats.

    Example:
        >>> zero_(torch.tensor([float("nan"), -1.0, 2.0]), torch.tensor([False, False, True]))
        tensor([0., 0., 2.])
    """
    if type(tensor) not in PLAIN:
        tensor = local(tensor)
    if tensor.requires_grad and torch.is_grad_enabled():
        return tensor.mul_(mask)
    bits = _SAME_SIZE.get(tensor.element_size())
    if bits is None:  # complex128
        return tensor.detach().masked_fill_(~mask, 0)
    integers = tensor.detach().view(bits)
    if tensor.numel() > _PIECE and tensor.is_cpu and tensor.is_contiguous() and mask.is_contiguous():
        _multiply_(integers.view(-1), mask.view(-1))
    else:
        integers.mul_(mask)
    return tensor


def _multiply_(integers: Tensor, mask: Tensor) -> None:
    """Multiply many integers by a mask, both flat and on the CPU.

    A product converts the mask to a temporary of the integers' type first. So it is computed in pieces, whose
    temporaries stay in the cache: by NumPy in the smallest one, or by PyTorch where it has more than two threads.
    """
    numpy = numpy_for(integers) if torch.get_num_threads() <= 2 else None
    if numpy is None:
        for piece, kept in zip(torch.split(integers, _PRODUCT), torch.split(mask, _PRODUCT)):
            piece.mul_(kept)
        return
    values, size = integers.numpy(), numpy.setbufsize(_BUFFER)
    try:
        numpy.multiply(values, mask.view(torch.int8).numpy(), out=values)
    finally:
        numpy.setbufsize(size)


def is_masked(tensor: Tensor, mask: Tensor) -> bool:
    """Return whether every entry of ``tensor`` whose mask is False is 0 (or −0.0).

    On the CPU its bits are compared piece by piece, in the cache: reading all of it is what takes the time then.

    Example:
        >>> mask = torch.tensor([False, True])
        >>> is_masked(torch.tensor([0.0, 2.0]), mask), is_masked(torch.tensor([1.0, 2.0]), mask)
        (True, False)
    """
    tensor, bits = local(tensor).detach(), _SAME_SIZE.get(tensor.element_size())
    if not tensor.is_contiguous() and tensor.stride() == mask.stride():  # as channels-last and transposed ones are
        order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
        tensor, mask = tensor.permute(order), mask.permute(order)
    if bits is not None and tensor.is_cpu and tensor.is_contiguous() and mask.is_contiguous():
        pieces = torch.split(tensor.view(bits).view(-1), _PIECE), torch.split(mask.view(-1), _PIECE)
        found = torch.empty(min(tensor.numel(), _PIECE), dtype=torch.bool)
        if not any(_is_nonzero_outside(*pair, found) for pair in zip(*pieces)):
            return True  # else it may be −0.0
    return not bool(tensor.ne(0).gt(mask).any())


def _is_nonzero_outside(bits: Tensor, mask: Tensor, found: Tensor) -> bool:
    """Return whether an integer is not 0 where the mask is False; ``found`` is memory for as many bools."""
    numpy, found = numpy_for(bits), found[: len(bits)]
    if numpy is None:
        return bool(torch.ne(bits, 0, out=found).gt(mask).any())
    nonzero, kept = numpy.not_equal(bits.numpy(), 0, out=found.numpy()).view("u1"), mask.view(torch.uint8).numpy()
    return bool(numpy.greater(nonzero, kept, out=found.numpy()).any())


def masked_copy_(target: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
    """Copy ``source`` into ``target``, exactly 0 where the mask is False; one pass if dtype and layout are equal.

    Example:
        >>> masked_copy_(torch.ones(3), torch.tensor([float("nan"), -1.0, 2.0]), torch.tensor([False, False, True]))
        tensor([0., 0., 2.])
    """
    target, source = local(target), local(source)
    bits = _SAME_SIZE.get(target.element_size())
    same = target.dtype == source.dtype and target.device == source.device and target.stride() == source.stride()
    if mask is None or bits is None or not same:
        target.detach().copy_(source)
        return target if mask is None else zero_(target.detach(), mask)
    for found, given, kept in pieces_of(target.detach(), source.detach(), mask):
        torch.mul(given.view(bits), kept, out=found.view(bits))
    return target


def pieces_of(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield views of tensors of one shape that stay in a core's cache together; whole ones if their layouts differ.

    Example:
        >>> [(piece.shape, none) for piece, none in pieces_of(torch.zeros(2, 3), None)]
        [(torch.Size([6]), None)]
    """
    first = next(each for each in tensors if each is not None)
    if not first.is_cpu or any(each is not None and not each.is_contiguous() for each in tensors):
        yield tensors
        return
    flat = [each if each is None else torch.split(each.view(-1), _PIECE) for each in tensors]
    for number in range(-(-first.numel() // _PIECE)):
        yield tuple(each if each is None else each[number] for each in flat)


def unmasked_copy(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return a copy of a tensor that is exactly 0 where the mask is True, for :func:`put_back_`.

    Example:
        >>> unmasked_copy(torch.tensor([-1.0, 2.0]), torch.tensor([True, False]))
        tensor([0., 2.])
    """
    return masked_copy_(torch.empty_like(tensor), tensor, ~mask)


def put_back_(tensor: Tensor, copy: Tensor, mask: Tensor) -> None:
    """Write an :func:`unmasked_copy` to where the mask is False, in place, through the bits.

    Example:
        >>> tensor, mask = torch.tensor([-1.0, 2.0]), torch.tensor([True, False])
        >>> copy = unmasked_copy(tensor, mask)
        >>> put_back_(tensor.mul_(3), copy, mask)
        >>> tensor
        tensor([-3.,  2.])
    """
    bits = _SAME_SIZE.get(tensor.element_size())
    if bits is None or tensor.stride() != copy.stride():
        tensor.copy_(torch.where(mask, tensor, copy))
    else:
        zero_(tensor, mask).detach().view(bits).add_(copy.view(bits))


def zero_any_(tensor: Tensor, mask: Tensor) -> None:
    """Apply :func:`zero_` to a tensor that may be sparse, like an embedding's gradient: only to its stored values."""
    tensor = local(tensor)
    if tensor.is_sparse:
        zero_(tensor._values(), mask[tuple(tensor._indices())])
    else:
        zero_(tensor, mask)


def count_true(mask: Tensor) -> int:
    """Return the number of True entries of a bool tensor.

    Example:
        >>> count_true(torch.tensor([[True, False], [True, True]]))
        3
    """
    if not mask.is_contiguous() or mask.numel() < 1 << 12:
        return int(mask.count_nonzero())
    bytes_ = mask.view(-1).view(torch.uint8)
    whole = bytes_.numel() // 128 * 128
    counts = bytes_[:whole].view(-1, 128).sum(1, dtype=torch.uint8).sum()  # 128 at most: no sum overflows
    return int(counts) + int(bytes_[whole:].sum())


def pack(mask: Tensor) -> Tensor:
    """Return a bool tensor packed to uint8 on the CPU: eight entries per byte, the first in the lowest bit.

    Example:
        >>> pack(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    flat = mask.reshape(-1)
    numpy = numpy_for(flat)
    if numpy is not None:
        found: Tensor = torch.from_numpy(numpy.packbits(flat.numpy(), bitorder="little"))
        return found
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
    """Return the number of bytes for ``entries`` packed entries."""
    return -(-entries // 8)


def unpack(packed: Tensor, entries: int) -> Tensor:
    """Return the inverse of :func:`pack`: a flat bool tensor of ``entries``, on the device of ``packed``.

    Example:
        >>> unpack(torch.tensor([5], dtype=torch.uint8), 3)
        tensor([ True, False,  True])
    """
    numpy = numpy_for(packed)
    if numpy is not None:
        bits = numpy.unpackbits(packed.numpy(), count=entries, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    flat = torch.empty(packed.numel(), 8, dtype=torch.bool, device=packed.device)
    for bit in range(8):
        flat[:, bit] = packed.bitwise_and(1 << bit) != 0
    return flat.view(-1)[:entries].clone()
