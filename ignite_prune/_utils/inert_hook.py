"""Hooks that are inactive in copies and pickles of a model."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any


class InertHook:
    """A module hook that calls a function; its copies and pickles do nothing.

    A deep copy of a model copies its hooks, but the handler that a hook belongs to only manages the original.

    Args:
        run: function called with the hook's arguments; None for an inactive hook.
    """

    def __init__(self, run: Callable[..., Any] | None = None) -> None:
        self._run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if self._run is None else self._run(*args, **kwargs)

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()


def is_running(frame: types.FrameType) -> bool:
    """Return whether the call of ``frame`` has not ended.

    A KeyboardInterrupt ends a forward pass without its hooks; a frame that is no longer on the stack shows that.
    """
    running: types.FrameType | None = sys._getframe()
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None
