"""Inputs and outputs of a forward pass, of any type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune.core.batches import takes

_CACHES = ("past_key_values", "mems")  # a transformers model returns its cache under these names


def as_arguments(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return example inputs as positional and keyword arguments of a model's forward pass.

    A mapping holds keyword arguments if ``forward`` takes them, else it is one argument, as a batch that is a dict.
    """
    if isinstance(example_inputs, Mapping):
        return ((), dict(example_inputs)) if takes(model.forward, example_inputs) else ((example_inputs,), {})
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TypeError(f"Argument example_inputs should be a tensor, a tuple or a dict, but given {type(example_inputs)}")


def tensors_of(value: Any, caches: bool = False) -> list[Tensor]:
    """Return the tensors in a value: in mappings, sequences, dataclasses and the attributes of other objects.

    Args:
        value: an output, or inputs.
        caches: return those in caches of a transformers model too, whose sizes follow the heads of its layers.

    Example:
        >>> import torch
        >>> tensors_of({"logits": torch.zeros(1), "more": [torch.ones(1), None]})
        [tensor([0.]), tensor([1.])]
    """
    found: list[Tensor] = []
    _collect(value, found, set(), caches)
    return found


def _collect(value: Any, found: list[Tensor], seen: set[int], caches: bool) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (str, bytes, int, float, complex, type, nn.Module)) or value is None or id(value) in seen:
        return
    elif caches or not _is_cache(value):
        seen.add(id(value))
        for each in _held(value, () if caches else _CACHES):
            _collect(each, found, seen, caches)


def _held(value: Any, without: Sequence[str]) -> list[Any]:
    if isinstance(value, Mapping):
        return [each for name, each in value.items() if name not in without]
    if isinstance(value, (tuple, list, set, frozenset)):
        return list(value)
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
        return [vars(value)[name] for name in names if name not in without and name in vars(value)]
    return list(getattr(value, "__dict__", {}).values())


def _is_cache(value: Any) -> bool:
    """Return whether an object is a cache of a transformers model."""
    return any(kind.__name__ == "Cache" and kind.__module__.startswith("transformers") for kind in type(value).mro())


def checked_device(model: nn.Module, inputs: Any) -> torch.device:
    """Return the device of a model and its inputs.

    Raises:
        ValueError: they are on different devices, or on the meta device.
    """
    held = next((each.device for each in (*model.parameters(), *model.buffers())), None)
    given = next((each.device for each in tensors_of(inputs)), held)
    found = given or torch.device("cpu")
    if held is not None and held != found:
        raise ValueError(f"The model is on {held}, but its inputs are on {found}; move one of them")
    if found.type == "meta":
        raise ValueError("The model is on the meta device and cannot run; call model.to_empty(device='cpu') first")
    return found
