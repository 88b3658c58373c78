"""Which handlers mask which parameters, so that two do not fight over one.

A handler enters when its masks take effect and leaves when its hooks are removed. Neither a parameter nor a handler is
kept alive by it: a handler that was dropped without :meth:`detach` leaves when it is collected.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

_OWNERS: Any = WeakTensorKeyDictionary()  # parameter -> WeakSet of handlers


def check_free(handler: Any, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise if another handler masks one of the parameters.

    Raises:
        ValueError: names the parameter and the handler.
    """
    if _rival(handler, parameters) is None:
        return
    gc.collect()  # a trainer and its handlers refer to each other, so they outlive their last name until then
    rival = _rival(handler, parameters)
    if rival is not None:
        name, other = rival
        raise ValueError(
            f"Parameter {name!r} is masked by another handler, {type(other).__name__}, and this "
            f"{type(handler).__name__} would fight it: detach() or finalize() that one first, or allow it with "
            f"{type(handler).__name__}(..., shared=True)"
        )


def enter(handler: Any, parameters: Mapping[str, nn.Parameter]) -> None:
    """Record that a handler masks the parameters."""
    for parameter in parameters.values():
        _OWNERS.setdefault(parameter, WeakSet()).add(handler)


def leave(handler: Any, parameters: Mapping[str, nn.Parameter]) -> None:
    """Record that a handler masks the parameters no longer."""
    for parameter in parameters.values():
        owners = _OWNERS.get(parameter)
        if owners is not None:
            owners.discard(handler)


def _rival(handler: Any, parameters: Mapping[str, nn.Parameter]) -> tuple[str, Any] | None:
    for name, parameter in parameters.items():
        for other in _OWNERS.get(parameter, ()):
            if other is not handler:
                return name, other
    return None
