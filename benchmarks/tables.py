"""The rows as a table: coloured on a terminal, plain Markdown in a pipe or a file, or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rows import Missing, Row, number, plain

Rows = dict[str, Sequence[Row | Missing]]
_HEADER = ("row", "what", "target", "measured", "met?", "middle half", "note")


def missed(rows: Rows) -> list[str]:
    """Return the names of the rows whose target was not met."""
    return [row.what.strip() for each in rows.values() for row in each if isinstance(row, Row) and row.met is False]


def show(console: Console, rows: Rows) -> None:
    """Print a coloured table on a terminal, otherwise Markdown, whose lines are not wrapped."""
    if console.is_terminal:
        console.print(_coloured(rows))
    else:
        console.file.write("\n".join(markdown(rows)) + "\n")


def markdown(rows: Rows) -> Iterable[str]:
    """Yield the lines of a Markdown table."""
    yield _line(_HEADER)
    yield _line(["---", "---", "--:", "--:", "---", "--:", "---"])
    for name, each in rows.items():
        for row in each:
            yield _line((name, *_cells(row)))


def write_json(path: Path, rows: Rows, about: dict[str, Any]) -> None:
    """Write every row with its value, unit, target and note, and a description of the run."""
    found = [{"row": name, **plain(row)} for name, each in rows.items() for row in each]
    path.write_text(json.dumps({**about, "rows": found}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.strip().replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _cells(row: Row | Missing) -> tuple[str, ...]:
    """Return the text of each column but the first."""
    if isinstance(row, Missing):
        return row.what, "", "n/a", "", "", row.note
    verdict = {True: "yes", False: "missed", None: ""}[row.met]
    return row.what, row.target, f"{number(row.value)} {row.unit}", verdict, row.half, row.note


def _coloured(rows: Rows) -> Table:
    table = Table(
        title="ignite_prune, measured", caption="copy = time to copy these weights once", caption_justify="left"
    )
    for name, style, right in zip(_HEADER, ("dim", "", "", "", "", "dim"), (0, 0, 1, 1, 0, 1)):
        table.add_column(name, style=style, no_wrap=name != "what", justify="right" if right else "left")
    colours = {"yes": "[green]yes", "missed": "[bold red]missed"}
    for name, each in rows.items():
        for index, row in enumerate(each):
            what, target, measured, verdict, half, note = _cells(row)
            what = f"{what}\n[dim]{note}[/dim]" if note else what
            table.add_row("" if index else name, what, target, measured, colours.get(verdict, ""), half)
        table.add_section()
    return table
