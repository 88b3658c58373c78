"""The form of a mask store's state: names, shapes, and one bit for each entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.arguments import near
from ignite_prune._utils.bits import packed_size
from ignite_prune._utils.state import is_plain


def checked_bits(state: Any, shapes: Mapping[str, list[int]]) -> Tensor:
    """Return the bits of a mask state that fits ``shapes``.

    Raises:
        TypeError: the state is of another form.
        ValueError: other names or shapes, or too few or too many bits.
    """
    if not isinstance(state, Mapping) or not {"names", "shapes", "bits"} <= set(state):
        raise TypeError("The masks of a state_dict should be a mapping with 'names', 'shapes' and 'bits'")
    names, bits = state["names"], state["bits"]
    if not isinstance(names, list) or not isinstance(state["shapes"], list) or len(names) != len(state["shapes"]):
        raise TypeError("The masks of a state_dict should have lists of names and shapes of one length")
    if len(set(map(str, names))) != len(names) or set(map(str, names)) != set(shapes):
        missing, extra = sorted(set(shapes) - set(map(str, names))), sorted(set(map(str, names)) - set(shapes))
        raise ValueError(
            "The checkpoint's masks are of other parameters"
            + (f"; it lacks {missing}" if missing else "")
            + (f"; it has {extra[0]!r} ({near(extra[0], list(shapes))})" if extra else "")
        )
    for name, shape in zip(names, state["shapes"]):
        if not isinstance(shape, list) or not all(type(size) is int for size in shape) or shape != shapes[name]:
            raise ValueError(
                f"The checkpoint's mask of {name!r} has shape {shape!r:.80}, but the parameter {shapes[name]}"
            )
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8 or bits.ndim != 1 or not is_plain(bits):
        raise TypeError("The mask bits of a state_dict should be a 1-D uint8 tensor")
    expected = sum(packed_size(math.prod(shape)) for shape in shapes.values())
    if bits.numel() != expected:
        raise ValueError(f"The checkpoint's mask bits should be {expected} bytes, but there are {bits.numel()}")
    return bits
