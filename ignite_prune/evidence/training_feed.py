"""Evidence from training: hooks on the optimizers and on the model's own forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune.core.step_hooks import Closure, closure_of, grad_scale, with_closure
from ignite_prune.evidence.evidence import Evidence
from ignite_prune.evidence.observe import observer_of


class TrainingFeed:
    """Feeds collectors from what a trainer does anyway: the gradients before each optimizer step, and the model's
    forward and backward passes in training mode.

    Args:
        evidence: holds the collectors.
        model: the unwrapped model.
        optimizers: those that train it.
        scale: returns the scale of gradients in a backward pass (of a GradScaler).
    """

    def __init__(
        self, evidence: Evidence, model: nn.Module, optimizers: Sequence[Optimizer], scale: Callable[[], float]
    ) -> None:
        collectors = list(evidence.collectors.values())
        self._model, self._optimizers = model, list(optimizers)
        self._collectors = [each for each in collectors if each.differentiated]
        self._observer = observer_of(collectors, scale, self._is_training)
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Put the hooks on; a second call does nothing."""
        if self._collectors and not self._handles:
            self._handles = [each.register_step_pre_hook(self._before_step) for each in self._optimizers]
        self._observer.install(self._model)

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._observer.remove()

    def _is_training(self) -> bool:
        return self._model.training and torch.is_grad_enabled()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Collect the gradients; those of a step with a closure, which computes them, at its first evaluation."""
        if (len(args) == 1 and not kwargs) or closure_of(args, kwargs) is None:
            self._collect(optimizer)
            return None
        return with_closure(args, kwargs, lambda closure: _Once(closure, lambda: self._collect(optimizer)))

    def _collect(self, optimizer: Optimizer) -> None:
        scale = grad_scale(optimizer)
        if scale is None:  # the step will be skipped: its gradients overflowed
            return
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for collector in self._collectors:
            found = {
                name: _unscaled(parameter.grad, scale)
                for name, parameter in collector.differentiated.items()
                if parameter.grad is not None and parameter in held
            }
            if found:
                collector.on_gradients(found)


class _Once:
    """A closure that calls a function after its first evaluation."""

    def __init__(self, closure: Closure, then: Callable[[], None]) -> None:
        self._closure, self._then, self._done = closure, then, False

    def __call__(self) -> Any:
        loss = self._closure()
        if not self._done:
            self._done = True
            self._then()
        return loss


def _unscaled(gradient: Tensor, scale: Tensor | float) -> Tensor:
    gradient = gradient.detach()
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    return gradient / scale.to(gradient.device) if isinstance(scale, Tensor) else gradient
