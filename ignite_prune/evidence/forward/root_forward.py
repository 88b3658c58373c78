"""The start and the end of a model's outermost forward pass, however it ends."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ignite_prune._utils.inert_hook import InertHook, is_running
from ignite_prune.core.selection import unwrap


class RootForward:
    """Calls functions around each forward pass of a model's root, until :meth:`remove`.

    A forward inside another one of the same model is part of it. Compiled forwards are left out.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``: the hooks are put on the module inside.
        begin: called with the module and the arguments at the start of a forward pass.
        end: called at its end with whether it failed.
    """

    def __init__(
        self, model: nn.Module, begin: Callable[[nn.Module, Any, Any], object], end: Callable[[bool], object]
    ) -> None:
        self._begin, self._end = begin, end
        self._running: list[tuple[types.FrameType, BaseException | None]] = []  # with the error being handled, if any
        root, enter, leave = unwrap(model), InertHook(self._enter), InertHook(self._leave)
        self._handles = [
            root.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
            root.register_forward_hook(leave, always_call=True),
        ]

    def remove(self) -> None:
        """Remove the hooks; a forward pass that was interrupted ends now."""
        for handle in self._handles:
            handle.remove()
        if self._running:
            self._abandon()

    def _enter(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._running and not is_running(self._running[0][0]):
            self._abandon()
        self._running.append((sys._getframe(2), sys.exc_info()[1]))
        if len(self._running) == 1:
            self._begin(model, args, kwargs)

    def _leave(self, *_: Any) -> None:
        if torch.compiler.is_compiling() or not self._running:
            return
        failed = sys.exc_info()[1] is not self._running.pop()[1]
        if not self._running:
            self._end(failed)

    def _abandon(self) -> None:
        """End a forward pass that never called its hook: a KeyboardInterrupt skips them."""
        self._running.clear()
        self._end(True)
