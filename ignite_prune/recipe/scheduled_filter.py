"""ScheduledFilter: an event filter that stores the arguments that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class ScheduledFilter:
    """A filter of counts.

    Args:
        event: what it was made from, so that ``Recipe.of`` can write it.
        is_due: whether a count is due.
    """

    def __init__(self, event: Any, is_due: Callable[[int], bool]) -> None:
        self.event, self._is_due = event, is_due

    def __call__(self, engine: Any, event: int) -> bool:
        return self._is_due(event)
