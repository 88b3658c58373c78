"""Deep copies of modules, and copies that are used several times."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

_HELD = ("_parameters", "_buffers", "_modules")
_DICTS = (dict, OrderedDict)
_ATOMS = (type(None), bool, int, float, str, torch.dtype, torch.device)


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
    return all(type(value) in _DICTS if name in _HELD else _is_setting(value) for name, value in vars(module).items())


def _is_setting(value: Any) -> bool:
    """Return whether a value is a plain one, a tuple or set of such, or an empty dict."""
    if type(value) in (tuple, set):
        return all(type(each) in _ATOMS for each in value)
    return type(value) in _ATOMS or (type(value) in _DICTS and not value)


def _fill(made: nn.Module, module: nn.Module, known: dict[int, Any]) -> None:
    """Give a new module copies of a plain module's attributes."""
    for name, value in vars(module).items():
        if name in _HELD:
            made.__dict__[name] = type(value)((key, copy.deepcopy(each, known)) for key, each in value.items())
        else:
            made.__dict__[name] = value.copy() if isinstance(value, dict | set) else value


class Reusable:
    """A copy of a model that is reset instead of being copied again, after it was changed and run.

    A reset restores attributes, the contents of lists and dicts, and values of buffers. If that is not enough (a module
    holds an object of another kind, or a parameter was written to), the model is copied again.

    Args:
        make: returns a new copy.

    Example:
        >>> again = Reusable(lambda: nn.Linear(2, 1))
        >>> first = again()
        >>> first.extra = 1
        >>> again() is first, hasattr(first, "extra")
        (True, False)
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        self._model: nn.Module | None = None

    def __call__(self) -> nn.Module:
        """Return the model as it was made; the one that was returned before is no longer valid."""
        if self._model is None or not self._reset():
            self._model = self._make()
            self._known = self._record(self._model)
        return self._model

    def _record(self, model: nn.Module) -> bool:
        """Record what a reset restores; return whether that is everything."""
        self._modules = [(module, type(module), dict(vars(module))) for module in model.modules()]
        self._contents: list[tuple[Any, Any]] = []
        self._tensors: dict[int, tuple[Tensor, int, Tensor | None]] = {}
        return all(self._is_known(value) for _, _, values in self._modules for value in values.values())

    def _is_known(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            values = None if isinstance(value, nn.Parameter) else value.clone()
            self._tensors[id(value)] = value, value._version, values
            return True
        if type(value) in (list, set, *_DICTS):
            self._contents.append((value, value.copy()))
            value = [*value, *(value.values() if isinstance(value, dict) else ())]
        elif type(value) not in (tuple, torch.Size):
            return isinstance(value, (*_ATOMS, nn.Module, type, FunctionType, BuiltinFunctionType))
        known = [self._is_known(each) for each in value]  # all of them, as each is recorded
        return all(known)

    @torch.no_grad()
    def _reset(self) -> bool:
        """Restore the model; return whether that is possible."""
        for tensor, version, values in self._tensors.values():
            if tensor._version != version:
                if values is None or values.shape != tensor.shape:
                    return False
                tensor.copy_(values)
        self._tensors = {id(t): (t, t._version, values) for t, _, values in self._tensors.values()}
        for container, values in self._contents:
            container.clear()
            container.extend(values) if isinstance(container, list) else container.update(values)
        for module, kind, attributes in self._modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
        return self._known
