"""The state of a mask store: names, shapes, and one bit for each entry, or less with an entropy code."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.arguments import near
from ignite_prune._utils.bits import pack, packed_size, unpack
from ignite_prune._utils.extras import needed
from ignite_prune._utils.state import checked_mapping, checked_tensor, is_plain


def packed(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the state of masks: all in one uint8 tensor, in which each mask starts a byte."""
    bits = [pack(mask) for mask in masks.values()]
    return {
        "names": list(masks),
        "shapes": [list(mask.shape) for mask in masks.values()],
        "bits": torch.cat(bits) if bits else torch.empty(0, dtype=torch.uint8),
    }


def compressed(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the state of masks with each one's entropy code: the parameters of the code as JSON, and its bytes.

    A code has another size at each update: a list of pairs is not flattened by ``torch.distributed.checkpoint``.
    """
    from ignite_prune._utils.mask_codec import encode  # slow to import

    codes = []
    for mask in masks.values():
        params, data = encode(mask.detach().cpu().numpy())
        codes.append((json.dumps(params), torch.from_numpy(data.copy())))
    return {"names": list(masks), "shapes": [list(mask.shape) for mask in masks.values()], "codes": codes}


def unpacked(state: Any, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the masks of a state that fits the parameters, by name; raise as :func:`_checked`.

    Those of a sharded store are yielded as they are: DTensors, or whole tensors in a file that was collected.
    """
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    if isinstance(state, Mapping) and "shards" in state:
        yield from _checked_shards(state, shapes)
        return
    if isinstance(state, Mapping) and "codes" in state:
        needed("numpy", "A state with compressed masks")
        _check_names(state, shapes, "codes")
        for name, code in zip(state["names"], _checked_codes(state)):
            yield name, _decoded(name, code, shapes[name]).to(parameters[name].device)
        return
    bits, start = _checked(state, shapes), 0
    for name, shape in zip(state["names"], state["shapes"]):
        entries = math.prod(shape)
        size = packed_size(entries)
        yield name, unpack(bits[start : start + size].to(parameters[name].device), entries).view(shape)
        start += size


def _checked_shards(state: Mapping[str, Any], shapes: dict[str, list[int]]) -> Iterator[tuple[str, Tensor]]:
    _check_names(state, shapes, "shards")
    shards = checked_mapping("masks 'shards'", state["shards"], shapes)
    for name in state["names"]:
        yield name, checked_tensor(f"mask of {name!r}", shards[name], shape=shapes[name], dtype=torch.bool)


def _checked_codes(state: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    codes = state["codes"]
    if not isinstance(codes, list) or len(codes) != len(state["names"]):
        raise TypeError("The masks of a state_dict should have a list of one code for each name")
    for code in codes:
        if not isinstance(code, tuple) or len(code) != 2 or not isinstance(code[0], str):
            raise TypeError("Each code of a state_dict's masks should be a text and a tensor")
        data = code[1]
        if not isinstance(data, Tensor) or data.dtype != torch.uint8 or data.ndim != 1 or not is_plain(data):
            raise TypeError("Each code of a state_dict's masks should be a text and a 1-D uint8 tensor")
    return codes


def _decoded(name: str, code: tuple[str, Tensor], shape: list[int]) -> Tensor:
    from ignite_prune._utils.mask_codec import decode  # slow to import

    text, data = code
    try:
        mask = torch.from_numpy(decode(json.loads(text), data.cpu().numpy(), shape))
    except Exception as error:  # what a damaged code raises depends on where it is damaged
        raise ValueError(f"The checkpoint's mask of {name!r} is damaged: {error}") from error
    if mask.dtype != torch.bool or list(mask.shape) != shape:
        raise ValueError(f"The checkpoint's mask of {name!r} is damaged: it has shape {tuple(mask.shape)}")
    return mask


def _checked(state: Any, shapes: Mapping[str, list[int]]) -> Tensor:
    """Return the bits of a mask state that fits ``shapes``.

    Raises:
        TypeError: the state is of another form.
        ValueError: other names or shapes, or too few or too many bits.
    """
    _check_names(state, shapes, "bits")
    bits = state["bits"]
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8 or bits.ndim != 1 or not is_plain(bits):
        raise TypeError("The mask bits of a state_dict should be a 1-D uint8 tensor")
    expected = sum(packed_size(math.prod(shape)) for shape in shapes.values())
    if bits.numel() != expected:
        raise ValueError(f"The checkpoint's mask bits should be {expected} bytes, but there are {bits.numel()}")
    return bits


def _check_names(state: Any, shapes: Mapping[str, list[int]], content: str) -> None:
    """Raise unless a state has the names and shapes of the parameters, and ``content``."""
    if not isinstance(state, Mapping) or not {"names", "shapes", content} <= set(state):
        raise TypeError(f"The masks of a state_dict should be a mapping with 'names', 'shapes' and {content!r}")
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
