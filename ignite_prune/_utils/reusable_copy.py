"""A copy of a model for several trials, which is reset in between."""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.copies import ATOMS, DICTS


class ReusableCopy:
    """A copy of a model that is reset instead of being copied again, after it was changed and run.

    A reset restores attributes, the contents of lists and dicts, and values of buffers. If that is not enough (a module
    holds an object of another kind, or a parameter was written to), the model is copied again.

    Args:
        make: returns a new copy.

    Example:
        >>> again = ReusableCopy(lambda: nn.Linear(2, 1))
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
        if type(value) in (list, set, *DICTS):
            self._contents.append((value, value.copy()))
            value = [*value, *(value.values() if isinstance(value, dict) else ())]
        elif type(value) not in (tuple, torch.Size):
            return isinstance(value, (*ATOMS, nn.Module, type, FunctionType, BuiltinFunctionType))
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
