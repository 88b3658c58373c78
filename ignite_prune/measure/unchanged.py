"""Restores a model exactly after any code has run with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ignite_prune.core.undisturbed import undisturbed


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and restore all of it afterwards to the bit, also after an error.

    Restored are parameters and their gradients, buffers, modes, the modules themselves and the random state; what is
    done in between may prune, slice, cast or train the model.

    Args:
        model: the unwrapped model. Its parameters are copied once.
    """
    held = [_Held(each) for each in model.parameters()]
    modules = [(each, dict(each._modules), dict(each._parameters)) for each in model.modules()]
    with undisturbed(model):
        try:
            yield
        finally:
            for module, children, parameters in modules:
                _put_back(module._modules, children)
                _put_back(module._parameters, parameters)
            for each in held:
                each.restore()


class _Held:
    """A parameter with a copy of its values; its gradient is set aside."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter, self.data, self.before = parameter, parameter.data, parameter.detach().clone()
        self.needs_grad, self.grad = parameter.requires_grad, parameter.grad
        parameter.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        self.data.copy_(self.before)
        if not _same_memory(self.parameter, self.data):  # it was cast or moved
            self.parameter.data = self.data
        self.parameter.requires_grad_(self.needs_grad)
        self.parameter.grad = self.grad


def _same_memory(one: Tensor, two: Tensor) -> bool:
    same = one.dtype == two.dtype and one.device == two.device and one.shape == two.shape
    return same and one.data_ptr() == two.data_ptr() and one.stride() == two.stride()


def _put_back(now: dict, before: dict) -> None:
    if now != before or list(now) != list(before):
        now.clear()
        now.update(before)
