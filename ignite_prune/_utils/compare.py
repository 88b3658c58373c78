"""Comparisons, counts, positions and transposed copies over many entries.

PyTorch's comparisons on the CPU take longer than reading their operands, as do ``count_nonzero``, ``nonzero`` and
copies of a transposed view: about six times as long as NumPy's for 32 and 64 bits.
NumPy is used where it is installed; both give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ignite_prune._utils.bits import numpy_for

_NUMPY = {torch.float32, torch.float64, torch.uint8}


def above(values: Tensor, bound: float | Tensor, out: Tensor) -> Tensor:
    """Write ``values > bound`` into ``out`` (bool, of the shape of ``values``) and return it."""
    return _compare("greater", values, bound, out)


def below(values: Tensor, bound: float | Tensor, out: Tensor) -> Tensor:
    """Write ``values < bound`` into ``out`` (bool, of the shape of ``values``) and return it."""
    return _compare("less", values, bound, out)


def _compare(name: str, values: Tensor, bound: float | Tensor, out: Tensor) -> Tensor:
    numpy = numpy_for(values) if values.dtype in _NUMPY else None
    if numpy is None:
        return (torch.gt if name == "greater" else torch.lt)(values, bound, out=out)
    array = values.numpy()
    other = bound.numpy() if isinstance(bound, Tensor) else array.dtype.type(bound)
    getattr(numpy, name)(array, other, out=out.numpy())
    return out


def copy_turned(source: Tensor, out: Tensor) -> Tensor:
    """Copy ``source``, whose memory is in another order than that of ``out`` (contiguous), into it and return it."""
    numpy = numpy_for(source) if source.dtype in _NUMPY and source.dtype == out.dtype else None
    if numpy is None:
        return out.copy_(source)
    numpy.copyto(out.numpy(), source.numpy())
    return out


def places_of(mask: Tensor) -> Tensor:
    """Return the indices of the True entries of a 1-D bool tensor, ascending, int64.

    Example:
        >>> places_of(torch.tensor([True, False, True]))
        tensor([0, 2])
    """
    numpy = numpy_for(mask)
    if numpy is None:
        return mask.nonzero().squeeze(1)
    return torch.from_numpy(numpy.flatnonzero(mask.numpy()))


def kth_smallest(values: Tensor, *ranks: int) -> list[Tensor]:
    """Return the ``k``-th smallest of 1-D values for each ``k`` of ``ranks``, counted from 1, as 0-D tensors.

    Example:
        >>> kth_smallest(torch.tensor([3.0, 1.0, 2.0]), 1, 3)
        [tensor(1.), tensor(3.)]
    """
    numpy = numpy_for(values) if values.dtype in _NUMPY else None
    if numpy is None:
        return [values.kthvalue(rank).values for rank in ranks]
    ordered = torch.from_numpy(numpy.partition(values.numpy(), [rank - 1 for rank in ranks]))
    return [ordered[rank - 1] for rank in ranks]
