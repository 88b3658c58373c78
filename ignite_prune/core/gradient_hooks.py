"""Hooks that mask gradients which a plain ``backward()`` does not produce, before anything reads them.

- ``torch.autograd.grad`` does not accumulate gradients: hooks on ``.grad`` are not called, but tensor hooks are.
- DistributedDataParallel writes the reduced gradients when the backward pass is over. A communication hook that
  compresses, such as PowerSGD's, gives pruned entries values; they are masked once more after that.
- A parameter whose tensor is exchanged loses its hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

_OFF: list[object] = []  # not empty while unmasked() is active


@contextmanager
def unmasked() -> Iterator[None]:
    """Let ``torch.autograd.grad`` return the gradients of pruned entries too, for evidence about them."""
    _OFF.append(None)
    try:
        yield
    finally:
        _OFF.pop()


def is_returned(parameter: nn.Parameter) -> bool:
    """Return whether the gradient on its way to a parameter is returned by ``torch.autograd.grad``.

    To be called in a tensor hook. Otherwise the gradient is accumulated, and masked then, in place and once.
    """
    if _OFF or torch.compiler.is_compiling():  # compiled autograd cannot ask; masked before the step
        return False
    node: Any = torch._C._current_autograd_node() or _accumulating_node(parameter)
    try:
        return not torch._C._will_engine_execute_node(node)
    except RuntimeError:  # raised for a leaf whose gradient is returned
        return True


def _accumulating_node(parameter: nn.Parameter) -> Any:
    """Return the node that accumulates a parameter's gradient, where the engine does not say which node is running."""
    with torch.enable_grad():
        view: Tensor = parameter.view_as(parameter)
    return view.grad_fn.next_functions[0][0] if view.grad_fn is not None else None


def after_reduction(call: Callable[[], None]) -> None:
    """Call a function at the very end of the backward pass that is running, after the reduction of DDP.

    DDP queues its reduction during the pass, so a callback that is queued by a callback comes after it.
    """
    engine = Variable._execution_engine
    engine.queue_callback(lambda: engine.queue_callback(call))


def install_again(parameter: nn.Parameter) -> None:
    """Install a parameter's hooks on the tensor that is below it now."""
    parameter._post_accumulate_grad_hooks = parameter._post_accumulate_grad_hooks
    parameter._backward_hooks = parameter._backward_hooks
