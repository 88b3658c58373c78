"""The state of a mask store: names, shapes, and one bit for each entry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.arguments import near
from ignite_prune._utils.bits import pack, packed_size, unpack
from ignite_prune._utils.state import checked_mapping, checked_tensor, is_plain


def packed(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the state of masks: all in one uint8 tensor, in which each mask starts a byte."""
    bits = [pack(mask) for mask in masks.values()]
    return {
        "names": list(masks),
        "shapes": [list(mask.shape) for mask in masks.values()],
        "bits": torch.cat(bits) if bits else torch.empty(0, dtype=torch.uint8),
    }


def unpacked(state: Any, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the masks of a state that fits the parameters, by name; raise as :func:`_checked`.

    Those of a sharded store are yielded as they are: DTensors, or whole tensors in a file that was collected.
    """
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    if isinstance(state, Mapping) and "shards" in state:
        yield from _checked_shards(state, shapes)
        return
    bits, start = _checked(state, shapes), 0
    for name, shape in zip(state["names"], state["shapes"]):
        entries = math.prod(shape)
        size = packed_size(entries)
        yield name, unpack(bits[start : start + size].to(parameters[name].device), entries).view(shape)
        start += size


def _checked_shards(state: Mapping[str, Any], shapes: dict[str, list[int]]) -> Iterator[tuple[str, Tensor]]:
    _check_names({**state, "bits": None}, shapes)
    shards = checked_mapping("masks 'shards'", state["shards"], shapes)
    for name in state["names"]:
        yield name, checked_tensor(f"mask of {name!r}", shards[name], shape=shapes[name], dtype=torch.bool)


def _check_names(state: Any, shapes: dict[str, list[int]]) -> None:
    """Raise unless a mask state is of parameters of these names and shapes."""
    if not isinstance(state, Mapping) or not {"names", "shapes", "bits"} <= set(state):
        raise TypeError("The masks of a state_dict should be a mapping with 'names', 'shapes' and 'bits'")
    names = state["names"]
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


def _checked(state: Any, shapes: dict[str, list[int]]) -> Tensor:
    """Return the bits of a mask state that fits ``shapes``.

    Raises:
        TypeError: the state is of another form.
        ValueError: other names or shapes, or too few or too many bits.
    """
    _check_names(state, shapes)
    bits = state["bits"]
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8 or bits.ndim != 1 or not is_plain(bits):
        raise TypeError("The mask bits of a state_dict should be a 1-D uint8 tensor")
    expected = sum(packed_size(math.prod(shape)) for shape in shapes.values())
    if bits.numel() != expected:
        raise ValueError(f"The checkpoint's mask bits should be {expected} bytes, but there are {bits.numel()}")
    return bits
