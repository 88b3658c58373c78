"""Forward passes that leave a model as it was: modes, buffers and random numbers are restored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def _eager() -> AbstractContextManager[Any]:
    """Run compiled models eagerly, so that they can be observed; torch before 2.6 has no such switch."""
    stance = vars(torch.compiler).get("set_stance")
    compiled = "torch._dynamo" in sys.modules  # slow to import; without it nothing is compiled
    return stance("force_eager") if stance is not None and compiled else nullcontext()


@contextmanager
def undisturbed(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Run passes in eval mode with gradients on, and restore modes, buffers and random state afterwards.

    With ``batch_statistics`` BatchNorm uses the batch's statistics, for a network that was never trained.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modes
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with ExitStack() as restored:  # each callback is called, also if Ctrl-C cuts another one short
        for module, name, buffer, before in buffers:
            restored.callback(_restore_buffer, module, name, buffer, before)
        for module, mode in modes.items():
            restored.callback(vars(module).update, training=mode)
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[d.index or 0 for d in devices]))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_eager())
            model.eval()
            for module in modes:
                if batch_statistics and isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            yield


@torch.no_grad()
def _restore_buffer(module: nn.Module, name: str, buffer: Tensor, before: Tensor) -> None:
    if module._buffers[name] is not buffer or not torch.equal(buffer, before):
        buffer.copy_(before)
        module._buffers[name] = buffer
