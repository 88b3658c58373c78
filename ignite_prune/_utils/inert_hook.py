"""Hooks that belong to one model in one process: in a copy or a pickle of the model they do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class InertHook:
    """A module hook that calls a function, and that copies and pickles as one that does nothing.

    Args:
        run: what to call, with the hook's own arguments; None for nothing.
    """

    def __init__(self, run: Callable[..., Any] | None = None) -> None:
        self._run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if self._run is None else self._run(*args, **kwargs)

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()
