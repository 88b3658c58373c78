"""Deep copies of modules."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

_HELD = ("_parameters", "_buffers", "_modules")
DICTS = (dict, OrderedDict)
ATOMS = (type(None), bool, int, float, str, torch.dtype, torch.device)


def copy_of(model: Module, memo: Mapping[int, Any] | None = None) -> Module:
    """Return a deep copy of a model; tensors of a graph that its modules keep are detached.

    ``copy.deepcopy`` refuses such tensors: a hidden state or an attention map that the last forward pass stored, the
    weight that the older ``weight_norm`` computes. Layers of ``torch.nn`` that hold only tensors, modules and plain
    settings are copied directly, which takes a tenth of the time.

    Args:
        model: any module.
        memo: what to put in place of objects, by their ``id``.
    """
    known: dict[int, Any] = dict(memo or {})
    modules = list(model.modules())
    for module in modules:
        for value in vars(module).values():
            _detach(value, known)
    plain = {id(module): module for module in modules if id(module) not in known and _is_plain(module)}
    known |= {number: type(module).__new__(type(module)) for number, module in plain.items()}
    for number, module in plain.items():
        _fill(known[number], module, known)
    return copy.deepcopy(model, known)


def _detach(value: Any, known: dict[int, Any]) -> None:
    if isinstance(value, Tensor):
        if not value.is_leaf and id(value) not in known:
            known[id(value)] = value.detach().clone()
    elif isinstance(value, dict):
        for each in value.values():
            _detach(each, known)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _detach(each, known)


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is a layer of ``torch.nn`` as it is made there, without hooks."""
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules.") or kind.__setstate__ is not nn.Module.__setstate__:
        return False
    return all(type(value) in DICTS if name in _HELD else _is_setting(value) for name, value in vars(module).items())


def _is_setting(value: Any) -> bool:
    """Return whether a value is a plain one, a tuple or set of such, or an empty dict."""
    if type(value) in (tuple, set):
        return all(type(each) in ATOMS for each in value)
    return type(value) in ATOMS or (type(value) in DICTS and not value)


def _fill(made: nn.Module, module: nn.Module, known: dict[int, Any]) -> None:
    """Give a new module copies of a plain module's attributes."""
    for name, value in vars(module).items():
        if name in _HELD:
            made.__dict__[name] = type(value)((key, copy.deepcopy(each, known)) for key, each in value.items())
        else:
            made.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
