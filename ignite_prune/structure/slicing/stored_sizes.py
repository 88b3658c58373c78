"""Whole numbers that sliced modules store, such as the size of a head: a fresh model with others is refused on loading.

Slicing updates the configuration of a model of ``transformers`` in place. A model that is built from it has fewer but
larger heads; all its shapes fit, so only these numbers distinguish it from the model that was pruned.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Mapping
from functools import cache
from inspect import isfunction, unwrap
from typing import Any

from torch import nn

Sizes = dict[str, dict[str, int]]
"""Whole numbers by path of the module and name of the attribute."""


def stored_sizes(model: nn.Module, names: Iterable[str]) -> Sizes:
    """Return the whole numbers of the modules that hold the named tensors, and of the modules around each.

    Of the model itself they are returned only if it holds a tensor or is next to the module that does; attributes that
    methods other than the constructor assign, such as a count of calls, are left out.

    Args:
        model: the unwrapped model.
        names: of parameters and buffers.

    Example:
        >>> stored_sizes(nn.Sequential(nn.Linear(3, 4)), ["0.weight"])
        {'0': {'in_features': 3, 'out_features': 4}}
    """
    paths = {path for name in names for path in _around(name.split(".")[:-1])}
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {path: _numbers(modules[path]) for path in sorted(paths) if path in modules}
    return {path: values for path, values in found.items() if values}


def check_sizes(model: nn.Module, names: Iterable[str], stored: Any) -> None:
    """Raise ValueError if a sliced model has other sizes than the one that was saved.

    Attributes that one of the two lacks are not compared.

    Raises:
        TypeError: ``stored`` is not a mapping by path and name.
    """
    if not isinstance(stored, Mapping) or not all(isinstance(values, Mapping) for values in stored.values()):
        raise TypeError("The sizes of a shrunk model should be a mapping by path and name")
    for path, values in stored_sizes(model, names).items():
        for name, value in values.items():
            saved = stored.get(path, {}).get(name, value)
            if saved != value:
                raise ValueError(
                    f"After slicing, {name} of {path or 'the model'!r} is {value}, but {saved} in the saved "
                    "model: build the model from the configuration of the unpruned one, not from the one that slicing "
                    "has changed"
                )


def _around(owner: list[str]) -> Iterable[str]:
    """Return the path of a module and of those around it; the outermost only if nothing is between."""
    yield from (".".join(owner[:length]) for length in range(len(owner), 0 if len(owner) > 1 else -1, -1))


def _numbers(module: nn.Module) -> dict[str, int]:
    kind: Any = type(module)
    changing = _assigned(kind)
    return {name: value for name, value in vars(module).items() if type(value) is int and name not in changing}


@cache
def _assigned(kind: type) -> frozenset[str]:
    """Return the names of attributes that methods of a class assign, but for its constructor."""
    kinds = [each for each in kind.__mro__ if each not in (nn.Module, object)]
    methods = [each for its in kinds for name, each in vars(its).items() if name != "__init__" and isfunction(each)]
    steps = [step for each in methods for step in dis.get_instructions(unwrap(each))]
    return frozenset(step.argval for step in steps if step.opname == "STORE_ATTR")
