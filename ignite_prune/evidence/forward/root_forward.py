"""The start and the end of a model's outermost forward pass, however it ends."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.inert_hook import InertHook, is_running
from ignite_prune.core.selection import unwrap


class RootForward:
    """Calls functions around each forward pass of a model's root, until :meth:`remove`.

    A forward inside another one of the same model is part of it. Compiled forwards are left out.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``: the hooks are put on the module inside.
        begin: called with the module at the start of a forward pass.
        end: called at its end with whether it failed.
    """

    def __init__(self, model: nn.Module, begin: Callable[[nn.Module], object], end: Callable[[bool], object]) -> None:
        self._begin, self._end = begin, end
        self._frames: list[types.FrameType] = []
        self._errors: list[BaseException | None] = []
        root, enter, leave = unwrap(model), InertHook(self._enter), InertHook(self._leave)
        self._handles: list[RemovableHandle] = [
            root.register_forward_pre_hook(enter, prepend=True),
            root.register_forward_hook(leave, always_call=True),
        ]

    def remove(self) -> None:
        """Remove the hooks; a forward pass that was interrupted ends now."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._frames:
            self._abandon()

    def _enter(self, model: nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._frames and not is_running(self._frames[0]):
            self._abandon()
        self._frames.append(sys._getframe(2))
        self._errors.append(sys.exc_info()[1])
        if len(self._frames) == 1:
            self._begin(model)

    def _leave(self, *_: Any) -> None:
        if torch.compiler.is_compiling() or not self._frames:
            return
        failed = sys.exc_info()[1] is not self._errors.pop()
        self._frames.pop()
        if not self._frames:
            self._end(failed)

    def _abandon(self) -> None:
        """End a forward pass that never called its hook: a KeyboardInterrupt skips them."""
        self._frames.clear()
        self._errors.clear()
        self._end(True)
