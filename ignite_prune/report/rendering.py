"""Renders findings with a template, and writes the page atomically."""

from __future__ import annotations

import base64
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from ignite_prune._utils.table import shown_seconds
from ignite_prune.report.chart import charts_of
from ignite_prune.report.findings import Findings, Picture, Series

TEMPLATES = {".html": "report.html.j2", ".md": "report.md.j2"}
MARK = "ignite_prune report"  # in the head of each page
_BARS = "▁▂▃▄▅▆▇█"


def rendered(findings: Findings, template: str) -> str:
    """Return a page; what comes from the source is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    html = template.endswith(".html.j2")
    page = Environment(
        loader=PackageLoader("ignite_prune.report", "."),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {
        "seconds": lambda value: "" if value is None else shown_seconds(value),
        "bytes": shown_bytes,
        "uri": _uri,
        "bars": bars,
        "cell": lambda text: str(text).replace("|", "\\|").replace("\n", " "),
    }
    return page.get_template(template).render(
        mark=MARK, found=findings, charts=charts_of(findings.curves) if html else [], isnan=math.isnan
    )


def write_whole(path: Path, text: str) -> None:
    """Write a text to a temporary file, which is then renamed."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def is_report(path: Path) -> bool:
    """Return whether a file is an earlier report."""
    with open(path, "rb") as file:
        return MARK.encode() in file.read(2048)


def shown_bytes(count: int) -> str:
    """Return a number of bytes with its unit.

    Example:
        >>> shown_bytes(512), shown_bytes(20_480), shown_bytes(5_000_000)
        ('512 B', '20 KiB', '4.77 MiB')
    """
    if count < 1024:
        return f"{count} B"
    power = min(int(math.log(count, 1024)), 4)
    return f"{count / 1024**power:.3g} {'KMGT'[power - 1]}iB"


def bars(points: Series, width: int = 24) -> str:
    """Return a curve as a line of block characters.

    Example:
        >>> bars([(0, 0.0), (1, 0.5), (2, 1.0)])
        '▁▅█'
    """
    step = max(len(points) / width, 1)
    values = [points[int(i * step)][1] for i in range(min(len(points), width))]
    values[-1] = points[-1][1]
    low, high = min(values), max(values)
    return "".join(_BARS[round((value - low) / ((high - low) or 1) * (len(_BARS) - 1))] for value in values)


def _uri(picture: Picture) -> Any:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
