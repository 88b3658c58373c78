"""Example inputs of a model as arguments of its forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return example inputs as positional and keyword arguments of a forward pass."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TypeError(f"Argument example_inputs should be a tensor, a tuple or a dict, but given {type(example_inputs)}")
