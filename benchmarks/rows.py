"""Rows of the table: measurement, target, and whether the target is met."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Settings:
    """Command-line settings."""

    device: torch.device
    rounds: int


@dataclass(frozen=True)
class Row:
    """One row of the table; the target is optional."""

    what: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    half: str = ""
    note: str = ""

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"≤ {number(self.at_most)}"
        return "" if self.at_least is None else f"≥ {number(self.at_least)}"

    @property
    def met(self) -> bool | None:
        if self.at_most is not None:
            return operator.le(self.value, self.at_most)
        return None if self.at_least is None else operator.ge(self.value, self.at_least)


@dataclass(frozen=True)
class Missing:
    """A row that cannot be measured on this machine, with the reason."""

    what: str
    note: str


def plain(row: Row | Missing) -> dict[str, Any]:
    """Return a row as a dict for JSON, with its target and verdict."""
    return asdict(row) | ({"met": row.met} if isinstance(row, Row) else {})


def from_plain(found: dict[str, Any]) -> Row | Missing:
    """Return the row of which :func:`plain` has made a dict."""
    if "value" not in found:
        return Missing(**found)
    return Row(**{key: value for key, value in found.items() if key != "met"})


def ratio_row(what: str, ratios: Sequence[float], unit: str, note: str = "", **target: float) -> Row:
    """Return a row with the median of the ratios of all rounds and the range of their middle half."""
    low = high = ratios[0]
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    half = f"{number(low)} – {number(high)}" if len(ratios) > 1 else ""
    return Row(what, statistics.median(ratios), unit, half=half, note=note, **target)


def number(value: float) -> str:
    """Format a number with about three digits.

    Example:
        >>> number(1.2345), number(12.345), number(432.1), number(20)
        ('1.23', '12.3', '432', '20')
    """
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
