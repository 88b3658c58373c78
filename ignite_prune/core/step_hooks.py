"""Hooks around optimizers' steps, their closures, and what a GradScaler leaves to a fused optimizer."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

Closure = Callable[[], Any]


class StepHooks:
    """Hooks around the steps of some optimizers, or of every optimizer.

    Args:
        optimizers: whose steps; empty for every optimizer of this process, present and future. Either way ``before`` is
            called before the optimizer's own hooks, and ``after`` after them. A given optimizer keeps the hooks alive.
        before: called with the optimizer, and its closure or None, before a step; returns the closure to use instead.
        after: called with the optimizer after a step, and whether the step was made: AMP may have skipped it.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        before: Callable[[Optimizer, Closure | None], Closure | None],
        after: Callable[[Optimizer, bool], None],
    ) -> None:
        self._optimizers, self._before_step, self._after_step = list(optimizers), before, after
        self._handles: list[RemovableHandle] = []
        self._is_installed = False
        _EVERY_STEP.register()

    def install(self) -> None:
        """Install the hooks, if they are not."""
        if self._is_installed:
            return
        self._is_installed = True
        _EVERY_STEP.change(self, installed=True)
        self._handles = [optimizer.register_step_pre_hook(self._stay) for optimizer in self._optimizers]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._is_installed = False
        _EVERY_STEP.change(self, installed=False)

    def _stay(self, *_: Any) -> None:
        """Do nothing; as a hook of an optimizer it keeps this object alive."""

    def _is_mine(self, optimizer: Optimizer) -> bool:
        return not self._optimizers or optimizer in self._optimizers

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if not self._is_mine(optimizer):
            return None
        given = closure_of(args, kwargs) if len(args) > 1 or kwargs else None
        closure = self._before_step(optimizer, given)
        return None if closure is given else with_closure(args, kwargs, lambda _: closure)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._is_mine(optimizer):
            self._after_step(optimizer, grad_scale(optimizer) is not None)


class _EveryStep:
    """Calls the installed objects around the steps of every optimizer of this process.

    PyTorch's dict of global hooks must not change while another thread steps, so one pair of hooks is registered, when
    the first object is made, and stays; which objects it calls is a tuple, replaced as a whole.
    """

    def __init__(self) -> None:
        self._installed: tuple[weakref.ref[StepHooks], ...] = ()  # a global hook must not keep an object alive
        self._lock, self._is_registered = threading.Lock(), False

    def register(self) -> None:
        with self._lock:
            if not self._is_registered:
                self._is_registered = True
                register_optimizer_step_pre_hook(self._before)
                register_optimizer_step_post_hook(self._after)

    def change(self, hooks: StepHooks, installed: bool) -> None:
        with self._lock:
            others = tuple(each for each in self._installed if each() not in (None, hooks))
            self._installed = (*others, weakref.ref(hooks)) if installed else others

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        changed = None
        for each in self._installed:
            hooks = each()
            result = None if hooks is None else hooks._before(optimizer, args, kwargs)
            if result is not None:
                changed = args, kwargs = result
        return changed

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for each in self._installed:
            hooks = each()
            if hooks is not None:
                hooks._after(optimizer, args, kwargs)


_EVERY_STEP = _EveryStep()


def closure_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Closure | None:
    """Return the closure that an optimizer's step was called with: ``args`` begin with the optimizer."""
    return next((each for each in (*args[1:], *kwargs.values()) if callable(each)), None)


def with_closure(args: Any, kwargs: Any, wrap: Callable[[Closure], Any]) -> tuple[Any, Any]:
    """Return the arguments of an optimizer's step with its closure, if there is one, replaced by ``wrap(closure)``."""

    def replaced(argument: Any) -> Any:
        return wrap(argument) if callable(argument) else argument

    return (args[0], *map(replaced, args[1:])), {name: replaced(each) for name, each in kwargs.items()}


def grad_scale(optimizer: Optimizer) -> Tensor | float | None:
    """Return what a fused optimizer divides its gradients by; 1.0 for others, None if it will skip the step.

    A GradScaler sets both as attributes of a fused optimizer, for one step. Another optimizer is called with gradients
    that are divided already, or not at all.
    """
    found = getattr(optimizer, "found_inf", None)
    if isinstance(found, Tensor) and bool(found.any()):
        return None
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else 1.0
