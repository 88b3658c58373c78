"""What a slicing keeps: indices of tensors, and the attributes of modules that hold the number of units."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

Attributes = Mapping[str, Mapping[str, int]]
"""New values of modules' attributes, by path and name."""


class KeptIndices(dict[str, dict[int, Tensor]]):
    """The kept indices by name of a parameter or buffer and by dimension.

    Args:
        indices: the mapping.
        attributes: the values that modules' attributes have afterwards, such as ``num_heads``, by path and name.
    """

    def __init__(
        self,
        indices: Mapping[str, Mapping[int, Tensor]] = MappingProxyType({}),
        attributes: Attributes = MappingProxyType({}),
    ) -> None:
        super().__init__({name: dict(dims) for name, dims in indices.items()})
        self.attributes = {path: dict(values) for path, values in attributes.items()}


def attributes_of(indices: Mapping[str, Mapping[int, Tensor]]) -> dict[str, dict[str, int]]:
    """Return the attributes that belong to kept indices; a plain mapping has none."""
    return indices.attributes if isinstance(indices, KeptIndices) else {}


def entry_of(owner: Any, name: str) -> Any:
    """Return an attribute, or with ``"name.0"`` an entry of one that is a list or tuple.

    Raises:
        AttributeError: there is none.
    """
    name, _, number = name.partition(".")
    value = getattr(owner, name)
    if not number:
        return value
    if not isinstance(value, (list, tuple)) or not number.isdigit() or int(number) >= len(value):
        raise AttributeError(f"{type(owner).__name__}.{name} has no entry {number}")
    return value[int(number)]


def with_entry(owner: Any, name: str, value: Any) -> tuple[str, Any]:
    """Return the name and new value of the attribute in which :func:`entry_of` then finds a value."""
    name, _, number = name.partition(".")
    if not number:
        return name, value
    whole = list(getattr(owner, name))
    whole[int(number)] = value
    return name, type(getattr(owner, name))(whole)


def value_at(model: nn.Module, path: str) -> Any:
    """Return the module, config or attribute at a path below a model; the model if the path is empty.

    Raises:
        AttributeError: there is none.
    """
    return reduce(getattr, path.split("."), model) if path else model
