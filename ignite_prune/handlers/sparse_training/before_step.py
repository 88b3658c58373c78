"""When an optimizer has its gradients: before its step, or inside where a closure makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class BeforeStep:
    """Calls ``hear(optimizer)`` each time that an optimizer's gradients are ready to be stepped with.

    Args:
        optimizers: whose steps.
        hear: what to call; it may change gradients, or take them away, which skips the step.
    """

    def __init__(self, optimizers: Sequence[Optimizer], hear: Callable[[Optimizer], None]) -> None:
        self._optimizers, self._hear = list(optimizers), hear
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Put the hooks on, where they are not."""
        if not self._handles:
            self._handles = [each.register_step_pre_hook(self._before_step) for each in self._optimizers]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if not any(callable(each) for each in (*args[1:], *kwargs.values())):
            self._hear(optimizer)
            return None

        def after(closure: Any) -> Any:
            def heard() -> Any:
                loss = closure()
                self._hear(optimizer)
                return loss

            return heard if callable(closure) else closure

        return (args[0], *map(after, args[1:])), {name: after(each) for name, each in kwargs.items()}
