"""Calls a function when an optimizer's gradients are ready: before its step, or in it after the closure has run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune.core.step_hooks import Closure, closure_of, with_closure


class BeforeStep:
    """Calls ``run(optimizer)`` whenever an optimizer's gradients are ready to step with.

    Args:
        optimizers: whose steps.
        run: what to call; it may change gradients, or set them to None, which skips the step.
    """

    def __init__(self, optimizers: Sequence[Optimizer], run: Callable[[Optimizer], None]) -> None:
        self._optimizers, self._run = list(optimizers), run
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Install the hooks, if they are not."""
        if not self._handles:
            self._handles = [each.register_step_pre_hook(self._before_step) for each in self._optimizers]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if (len(args) == 1 and not kwargs) or closure_of(args, kwargs) is None:
            self._run(optimizer)
            return None

        def wrap(closure: Closure) -> Closure:
            def wrapped() -> Any:
                loss = closure()
                self._run(optimizer)
                return loss

            return wrapped

        return with_closure(args, kwargs, wrap)
