"""Puts a watch on a model: two hooks on its root, which go on and off with every forward."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ignite_prune.core.selection import unwrap

if TYPE_CHECKING:
    from ignite_prune.evidence.forward.observer import Watch


class Installed:
    """A watch on a model's root: on from a forward's beginning to its end, whatever way it ends.

    A copy or a pickle of the model takes hooks along that do nothing.
    """

    def __init__(self, model: nn.Module, watch: Watch) -> None:
        root = unwrap(model)
        self._watch = watch
        self._frames: list[types.FrameType] = []
        self._errors: list[BaseException | None] = []
        enter, leave = Hook(self._enter), Hook(self._leave)
        self._handles: list[RemovableHandle] = [
            root.register_forward_pre_hook(enter, prepend=True),
            root.register_forward_hook(leave, always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks off, and the mode if an interrupt has left it on."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._frames:
            self._drop()

    def _enter(self, model: nn.Module) -> None:
        if self._frames and not is_running(self._frames[0]):
            self._drop()
        self._frames.append(sys._getframe(2))
        self._errors.append(sys.exc_info()[1])
        if len(self._frames) == 1:
            self._watch.begin(model)
            self._watch.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self, model: nn.Module) -> None:
        if not self._frames:
            return
        failed = sys.exc_info()[1] is not self._errors.pop()
        self._frames.pop()
        if not self._frames:
            self._watch.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            if failed:
                self._watch.clear()
            else:
                self._watch.finish()

    def _drop(self) -> None:
        """End a forward that never came to its end: a KeyboardInterrupt passes the hooks by."""
        self._frames.clear()
        self._errors.clear()
        self._watch.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._watch.clear()


class Hook:
    """A module hook that copies and pickles as one that does nothing."""

    def __init__(self, run: Callable[[nn.Module], None] | None = None) -> None:
        self._run = run

    def __call__(self, module: nn.Module, *_: Any) -> None:
        if self._run is not None and not torch.compiler.is_compiling():
            self._run(module)

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


def is_running(frame: types.FrameType) -> bool:
    """Whether the call of ``frame`` has not come to its end."""
    running: types.FrameType | None = sys._getframe()
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


def install(model: nn.Module, watch: Watch) -> Installed:
    """Put a watch on a model until the handle's ``remove()``.

    Args:
        model: bare, or wrapped in DDP or ``torch.compile``: the hooks go on the model inside.
        watch: what sees its forwards, those run by ``torch.compile`` excepted: compiled code runs as if it were not
            there, and calls of the model inside, or under ``torch.compiler.set_stance("force_eager")``, are seen.

    Returns:
        A handle; ``handle.remove()`` takes the hooks off.
    """
    return Installed(model, watch)


@contextmanager
def watching(model: nn.Module, watch: Watch) -> Iterator[Watch]:
    """Put a watch on a model for the length of a ``with`` block; only the model's own forwards are seen in it."""
    handle = install(model, watch)
    try:
        yield watch
    finally:
        handle.remove()
