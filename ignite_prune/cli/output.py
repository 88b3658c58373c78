"""What commands print: tables and JSON to stdout; progress, warnings and errors to stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_BARS = " ▁▂▃▄▅▆▇█"


def console(stderr: bool = False) -> Console:
    """Return a console; one that is no terminal does not wrap lines."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=200)


def say(text: str, style: str | None = None) -> None:
    """Print to stderr."""
    console(stderr=True).print(escape(text), style=style, soft_wrap=True)


def show(text: str) -> None:
    """Print to stdout as it is."""
    typer.echo(text)


def show_json(value: Any) -> None:
    """Print JSON; what it has no form for is text."""
    typer.echo(json.dumps(_finite(value), indent=2, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return list(value) if isinstance(value, torch.Size) else value


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None) -> None:
    """Print a table; columns of numbers are right-aligned."""
    listed = [list(map(str, row)) for row in rows]
    table = Table(show_footer=total is not None, box=None, pad_edge=False)
    for index, name in enumerate(head):
        numbers = all(_is_number(row[index]) for row in listed) and bool(listed)
        table.add_column(
            escape(name),
            footer=escape(str(total[index])) if total is not None else "",
            justify="right" if numbers else "left",
            overflow="fold",
        )
    for row in listed:
        table.add_row(*map(escape, row))
    console().print(table)


def _is_number(text: str) -> bool:
    return bool(text) and (text[0].isdigit() or text[0] in "-–") and not text[-1:].isalpha()


def curve(values: Sequence[float]) -> str:
    """Return numbers in [0, 1] as a line of bars.

    Example:
        >>> curve([0.0, 0.5, 1.0])
        ' ▄█'
    """
    return "".join(_BARS[min(len(_BARS) - 1, math.ceil(value * (len(_BARS) - 1)))] for value in values)


@contextmanager
def progress(title: str, items: Iterable[Any]) -> Iterator[Iterable[Any]]:
    """Show a bar on stderr while the items are taken, each time that they are."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    )
    with bar:
        yield _Tracked(bar, title, items)


class _Tracked:
    """Items that can be gone over again, with a bar for each time."""

    def __init__(self, bar: Progress, title: str, items: Iterable[Any]) -> None:
        self.bar, self.title, self.items = bar, title, items

    def __iter__(self) -> Iterator[Any]:
        total = len(self.items) if isinstance(self.items, Sequence) else None
        yield from self.bar.track(self.items, total=total, description=self.title)
