"""The teacher of a distillation: a model in eval mode, called without gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ignite_prune.handlers.distillation.forward_capture import CapturedCall, ForwardCapture


class Teacher:
    """Calls a model with a student's arguments; it is in eval mode from :meth:`install` to :meth:`remove`.

    Args:
        model: the teacher; its parameters and their ``requires_grad`` are not changed.
        names: modules whose outputs are captured.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.model = model
        self._capture = ForwardCapture(model, names, self._keep)
        self._training: list[nn.Module] = []  # modules that were in training mode before
        self._last: CapturedCall | None = None

    def install(self) -> None:
        """Install the hooks and put the model in eval mode."""
        self._training = self._training or [module for module in self.model.modules() if module.training]
        self.model.eval()
        self._capture.install()

    def remove(self) -> None:
        """Remove the hooks and restore the modes."""
        self._capture.remove()
        for module in self._training:
            module.training = True
        self._training, self._last = [], None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CapturedCall:
        """Return the forward pass with these arguments."""
        self.model.eval()  # in case it was changed
        with torch.no_grad():
            self.model(*args, **kwargs)
        found, self._last = self._last, None
        assert found is not None
        return found

    def _keep(self, call: CapturedCall) -> None:
        self._last = call
