"""One tensor as the code of its mask and its kept values, exact to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ignite_prune._utils import mask_codec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def is_storable(dtype: torch.dtype) -> bool:
    """Return whether safetensors has a dtype, so that a tensor need not be packed."""
    return dtype is not torch.complex128


def bits_of(tensor: Tensor) -> Array:
    """Return the bits of a tensor as a flat array of integers of its size (complex128: of its numbers)."""
    bits = _BITS[tensor.element_size()]
    flat = tensor.detach().cpu().contiguous().view(-1)
    found: Array = flat.resolve_conj().resolve_neg().view(bits).numpy()
    return found


def pack_tensor(tensor: Tensor, mask: Tensor | None) -> tuple[dict[str, Any], Tensor, Tensor] | None:
    """Return how a tensor is packed (JSON types), the code of its mask (uint8) and its kept values.

    Args:
        tensor: any dtype and shape.
        mask: bool, True = kept; entries that it prunes are 0. None keeps the entries whose bits are not all 0, so that
            −0.0 is a value.

    Returns:
        None if the tensor is not smaller so, or its dtype is not one of those that are packed.
    """
    import numpy as np

    if tensor.dtype not in _NAMES or (mask is None and tensor.numel() < 64):
        return None
    bits = bits_of(tensor)
    kept = _nonzero(bits) if mask is None else mask.detach().cpu().contiguous().view(-1).numpy()
    count = int(np.count_nonzero(kept))
    if count * bits.itemsize + tensor.numel() // 64 > 0.98 * bits.nbytes and mask is None:
        return None
    params, code = mask_codec.encode(kept.reshape(tensor.shape))
    values = bits[np.flatnonzero(kept)]
    if mask is None and code.nbytes + values.nbytes + 200 > bits.nbytes:
        return None
    packed = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "mask": params}
    return packed, torch.from_numpy(_own(code)), torch.from_numpy(values.view(np.uint8))


def unpack_tensor(packed: Mapping[str, Any], code: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tensor and the mask (True = kept) of :func:`pack_tensor`.

    Raises:
        ValueError: the parts do not fit each other.
    """
    import numpy as np

    dtype, shape = _DTYPES[packed["dtype"]], packed["shape"]
    mask = mask_codec.decode(packed["mask"], code.numpy(), shape)
    tensor = torch.zeros(shape, dtype=dtype)
    bits = bits_of(tensor)
    kept = np.flatnonzero(mask)
    if values.numel() != len(kept) * bits.itemsize:
        raise ValueError(f"{len(kept)} kept values should have {len(kept) * bits.itemsize} bytes, but {values.numel()}")
    bits[kept] = values.numpy().view(bits.dtype)
    return tensor, torch.from_numpy(_own(mask))


def _nonzero(bits: Array) -> Array:
    import numpy as np

    found: Array = (bits.view(np.int64).reshape(-1, 2) != 0).any(1) if bits.itemsize == 16 else bits != 0
    return found


def _own(array: Array) -> Array:
    import numpy as np

    return array if array.flags.writeable and array.flags.c_contiguous else np.array(array, order="C")
