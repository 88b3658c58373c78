"""Tables as plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as columns of plain text: the first to the left, numbers to the right.

    Example:
        >>> print(as_table(["layer", "kept"], [["first", "1,000"], ["second.weight", "20"]]))
        layer           kept
        -------------  -----
        first          1,000
        second.weight     20
    """
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    numeric = [all(not row[c] or row[c][0].isdigit() or row[c] == "-" for row in rows) for c in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(cells, widths, numeric))
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, rows)])


def shown_seconds(seconds: float) -> str:
    """Return a time with its unit, ``"-"`` for NaN.

    Example:
        >>> shown_seconds(0.00123), shown_seconds(4.5e-5), shown_seconds(float("nan"))
        ('1.23 ms', '45 µs', '-')
    """
    if math.isnan(seconds):
        return "-"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
