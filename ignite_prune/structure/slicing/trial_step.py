"""A step of a copy of an optimizer: an optimizer whose state was sliced wrongly fails here, not in training."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_HOOKS = "_optimizer_"  # how the names of the attributes begin that hold an optimizer's hooks


def failing_step(optimizer: Optimizer) -> str:
    """Return the error that a step with gradients of 0 raises, as text; empty if there is none.

    The step is that of a copy, with copies of the parameters and without hooks, so nothing is changed.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
        >>> failing_step(optimizer)
        ''
        >>> optimizer.state[weight]["momentum_buffer"] = torch.zeros(4)
        >>> failing_step(optimizer).partition(":")[0]
        'RuntimeError'
    """
    try:
        with torch.random.fork_rng(devices=[]):
            _step(_copy_of(optimizer))
    except torch.OutOfMemoryError:  # of the copy: it shows nothing
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


def _copy_of(optimizer: Optimizer) -> Optimizer:
    held = vars(optimizer)
    copied = object.__new__(type(optimizer))
    # A scheduler replaces "step" by a function of the original.
    own = {name: value for name, value in held.items() if not name.startswith(_HOOKS) and name != "step"}
    vars(copied).update(copy.deepcopy(own))
    vars(copied).update({name: OrderedDict() for name in held if name.startswith(_HOOKS)})
    return copied


def _step(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
    arguments: dict[str, Any] = {}
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        arguments["closure"] = _nothing_lost
    optimizer.step(**arguments)


def _nothing_lost() -> Tensor:
    return torch.zeros(())
