"""Evidence from a running trainer: hooks on its optimizers and its forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune.evidence.collection import Evidence
from ignite_prune.evidence.dispatch import Ears, Entering
from ignite_prune.evidence.forward.observer import Installed, install


class TrainingFeed:
    """Lets evidence hear what a trainer does anyway: the gradients an optimizer is about to step with, and the model's
    own forward and backward passes in training mode.

    Args:
        evidence: what to gather.
        model: the unwrapped model.
        optimizers: those that train it.
        scale: how much too large gradients are in a backward pass (a GradScaler's scale).
    """

    def __init__(
        self, evidence: Evidence, model: nn.Module, optimizers: Sequence[Optimizer], scale: Callable[[], float]
    ) -> None:
        self._evidence, self._model, self._optimizers = evidence, model, list(optimizers)
        self._listeners = [g for g in evidence.gatherers.values() if g.differentiated]
        self._ears = Ears(list(evidence.gatherers.values()), scale, self._listening)
        self._handles: list[RemovableHandle | Installed] = []

    def install(self) -> None:
        """Put the hooks on, where they are not."""
        if self._handles:
            return
        if self._listeners:
            self._handles += [o.register_step_pre_hook(self._before_step) for o in self._optimizers]
        if self._ears.shapes:
            self._handles.append(self._model.register_forward_pre_hook(Entering(self._ears), with_kwargs=True))
        watch = self._ears.watch()
        if watch is not None:
            self._handles.append(install(self._model, watch))

    def remove(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _listening(self) -> bool:
        return self._model.training and torch.is_grad_enabled()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Take the gradients; of a step with a closure, which makes them itself, those of its first evaluation."""
        closures = [each for each in (*args[1:], kwargs.get("closure")) if callable(each)]
        if not closures:
            self._take(optimizer)
            return None
        heard = _Heard(closures[0], lambda: self._take(optimizer))
        return (args[0], heard), {name: each for name, each in kwargs.items() if name != "closure"}

    def _take(self, optimizer: Optimizer) -> None:
        scale = fused_scale(optimizer)
        if scale is None:  # the step will be skipped: its gradients overflowed
            return
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for gatherer in self._listeners:
            found = {
                name: _true(parameter.grad, scale)
                for name, parameter in gatherer.differentiated.items()
                if parameter.grad is not None and parameter in held
            }
            if found:
                gatherer.gradients(found)


class _Heard:
    """A closure that tells when it was first evaluated."""

    def __init__(self, closure: Callable[[], Any], tell: Callable[[], None]) -> None:
        self._closure, self._tell, self._told = closure, tell, False

    def __call__(self) -> Any:
        loss = self._closure()
        if not self._told:
            self._told = True
            self._tell()
        return loss


def fused_scale(optimizer: Optimizer) -> Tensor | float | None:
    """Return what a fused optimizer will divide its gradients by, 1 for others, None where it will skip the step.

    A GradScaler hands both over as attributes of a fused optimizer; an unfused one gets gradients that are divided
    already, or no step.
    """
    overflow = getattr(optimizer, "found_inf", None)
    if isinstance(overflow, Tensor) and bool(overflow.any()):
        return None
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else 1.0


def _true(gradient: Tensor, scale: Tensor | float) -> Tensor:
    gradient = gradient.detach()
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    return gradient / scale.to(gradient.device) if isinstance(scale, Tensor) else gradient
