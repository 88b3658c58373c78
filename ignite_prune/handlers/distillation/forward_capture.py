"""Inputs and outputs of a model's forward passes, and outputs of some of its modules within them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.arguments import near
from ignite_prune._utils.inert_hook import InertHook
from ignite_prune.core.selection import unwrap


class CapturedCall(NamedTuple):
    """One forward pass: its arguments, its output, and the outputs of modules by name, in the order of their calls."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    features: dict[str, list[Any]]


class ForwardCapture:
    """Calls a function after each forward pass of a model.

    The hooks of the whole pass are on the model as it is called, in its wrapper: a compiled model stays compiled.

    Args:
        model: bare, DDP-wrapped or compiled, as it is called.
        names: modules inside the wrapper whose outputs are captured.
        captured: called with each :class:`CapturedCall`; what it returns replaces the output, None leaves it.

    Raises:
        ValueError: the model has no module of a name.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], captured: Callable[[CapturedCall], Any]) -> None:
        self._model, self._captured = model, captured
        modules = dict(unwrap(model).named_modules())
        self._modules: dict[str, nn.Module] = {}
        for name in names:
            if name not in modules:
                raise ValueError(f"{type(unwrap(model)).__name__} has no module {name!r}; {near(name, list(modules))}")
            self._modules[name] = modules[name]
        self._features: dict[str, list[Any]] | None = None  # of the running pass
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Install the hooks, if they are not."""
        if not self._handles:
            enter, leave = InertHook(self._enter), InertHook(self._leave)
            self._handles = [
                self._model.register_forward_pre_hook(enter, prepend=True),
                self._model.register_forward_hook(leave, with_kwargs=True),
                *(
                    module.register_forward_hook(InertHook(self._keeper(name)))
                    for name, module in self._modules.items()
                ),
            ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._features = [], None

    def _enter(self, *_: Any) -> None:
        self._features = {name: [] for name in self._modules}

    def _leave(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        features, self._features = self._features, None  # a recomputation in the backward pass is not captured
        return None if features is None else self._captured(CapturedCall(args, kwargs, output, features))

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            if self._features is not None and not torch.compiler.is_compiling():
                self._features[name].append(output)

        return keep
