"""Gradients of activations, by a hook on the tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_gradient(tensor: Tensor, scale: float, run: Callable[[Tensor], object]) -> None:
    """Call ``run`` with a tensor's gradient in the backward pass, unless a scaled loss overflowed.

    Args:
        tensor: in the autograd graph.
        scale: of the loss; a GradScaler skips the step if a scaled gradient is not finite.
        run: called with the scaled gradient.
    """

    @torch.no_grad()
    def hook(gradient: Tensor) -> None:
        if scale == 1.0 or bool(torch.isfinite(gradient).all()):
            run(gradient.detach())

    tensor.register_hook(hook)  # type: ignore[no-untyped-call]
