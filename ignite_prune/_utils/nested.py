"""Tensors in nested mappings, lists and tuples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)


def mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return ``value`` with every tensor replaced by ``function(tensor)``.

    Example:
        >>> import torch
        >>> mapped([torch.tensor(1), {"a": (torch.tensor(2), "x")}], lambda t: t + 1)
        [tensor(2), {'a': (tensor(3), 'x')}]
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return _filled(value, {key: mapped(each, function) for key, each in value.items()})
    if isinstance(value, tuple) and type(value) is not tuple:  # a named tuple
        return type(value)(*(mapped(each, function) for each in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(each, function) for each in value)
    return value


def _filled(like: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return items in a mapping of the same type; transformers' outputs have attributes too."""
    if type(like) is dict or not isinstance(like, MutableMapping):
        return items
    made = copy.copy(like)
    for key, value in items.items():
        made[key] = value
    return made
