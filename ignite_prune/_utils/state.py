"""Checks of the leaves of a loaded state: each returns the leaf in its form, or raises TypeError or ValueError.

A state comes from a file: a leaf may be missing, of another type or form, on the meta device, sparse, or a part of a
graph. Every ``checked`` of the package checks its leaves here, before anything is changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_PLAIN = (bool, int, float, str, list, tuple, Mapping, Tensor)


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, not quantized, and has data."""
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def checked_tensor(what: str, value: Any, *, shape: Iterable[int] | None = None, dtype: Any = None) -> Tensor:
    """Return a tensor of a checkpoint without its graph.

    Args:
        what: its name in errors.
        value: the leaf.
        shape: the shape that it should have; None: any.
        dtype: the dtype that it should have; None: any.

    Raises:
        TypeError: not a tensor, or one without data (on the meta device), sparse or quantized.
        ValueError: of another shape or dtype.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"The checkpoint's {what} should be a tensor, but is {_told(value)}")
    if not is_plain(value):
        raise TypeError(f"The checkpoint's {what} should be a dense tensor with data, but is {_told(value)}")
    if (shape is not None and value.shape != torch.Size(shape)) or (dtype is not None and value.dtype != dtype):
        wanted = "" if shape is None else f" of shape {tuple(shape)}"
        raise ValueError(
            f"The checkpoint's {what} should be a tensor{wanted}{'' if dtype is None else f' of {dtype}'}, but is "
            f"{_told(value)}"
        )
    return value.detach()


def checked_int(what: str, value: Any, low: int = 0, high: int = 2**62) -> int:
    """Return an int of a checkpoint that is in [low, high].

    Raises:
        ValueError: not an int, or outside the range.
    """
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"The checkpoint's {what} should be an int in [{low}, {high}], but is {_told(value)}")
    return value


def checked_mapping(what: str, value: Any, names: Iterable[Any], whole: bool = True) -> Mapping[Any, Any]:
    """Return a mapping of a checkpoint by these names, all of them unless ``whole`` is False.

    Raises:
        TypeError: not a mapping.
        ValueError: other names.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"The checkpoint's {what} should be a mapping by name, but is {_told(value)}")
    known = set(names)
    if not set(value) <= known or (whole and len(value) != len(known)):
        other = sorted(map(str, set(value) ^ known if whole else set(value) - known))
        raise ValueError(f"The checkpoint's {what} should be of {len(known)} known names, but differs in {other[:3]}")
    return value


def check_alike(what: str, value: Any, present: Any) -> None:
    """Raise unless a leaf or nest of a checkpoint has the form of the present value.

    Numbers match numbers and tensors of one entry; None, and a key that one side lacks, match anything plain.

    Raises:
        ValueError: names the first leaf that differs.
    """
    if value is None or (present is None and isinstance(value, _PLAIN)):
        return
    if isinstance(present, int | float) and isinstance(value, Tensor) and value.numel() == 1:
        checked_tensor(what, value)
    elif isinstance(present, Tensor) and not (present.numel() == 1 and isinstance(value, int | float)):
        checked_tensor(what, value, shape=present.shape, dtype=present.dtype)
    elif isinstance(present, Mapping) and isinstance(value, Mapping):
        for key in value:
            if key in present:
                check_alike(f"{what}[{key!r}]", value[key], present[key])
    elif isinstance(present, list | tuple) and isinstance(value, list | tuple):
        if isinstance(present, tuple) and len(value) != len(present):
            raise ValueError(f"The checkpoint's {what} should have {len(present)} entries, but has {len(value)}")
        for index, each in enumerate(value):
            if present:
                check_alike(f"{what}[{index}]", each, present[min(index, len(present) - 1)])
    elif isinstance(present, int | float | Tensor) and not isinstance(present, bool):
        if not isinstance(value, int | float) or not -(2**63) <= value <= math.inf:  # NaN is refused
            raise ValueError(f"The checkpoint's {what} should be a number, but is {_told(value)}")
    elif type(value) is not type(present):
        raise ValueError(f"The checkpoint's {what} should be a {type(present).__name__}, but is {_told(value)}")


def _told(value: Any) -> str:
    """Return what a leaf is, for an error."""
    if isinstance(value, Tensor):
        kind = "" if value.layout == torch.strided else f"{value.layout} "
        return f"a {kind}tensor of {value.dtype} and shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r:.60}"
