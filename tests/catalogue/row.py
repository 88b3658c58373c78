"""A row of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class Row:
    """A piece under the laws."""

    name: str
    make: Callable[..., Any]
    notes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


R = TypeVar("R", bound=Row)


def find(rows: Sequence[R], name: str) -> R:
    """Return the row of that name."""
    return next(row for row in rows if row.name == name)
