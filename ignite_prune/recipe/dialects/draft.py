"""Draft: the recipe of this package while another tool's recipe is translated to it."""

from __future__ import annotations

from typing import Any

from ignite_prune.recipe.dialects.report import Report
from ignite_prune.recipe.recipe_error import Path
from ignite_prune.recipe.source import Source


class Draft:
    """Groups, handlers and settings, with the line that each comes from, and the report.

    Args:
        source: the other tool's file.
        dialect: whose it is.
    """

    def __init__(self, source: Source, dialect: str) -> None:
        self.source, self.report = source, Report(dialect)
        self.groups: list[dict[str, Any]] = []
        self.handlers: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {}
        self.top: dict[str, Any] = {}
        self._lines: dict[Path, int | None] = {}

    def line(self, path: Path) -> int | None:
        """Return the line of a part of the file."""
        return self.source.line(path)

    def group(self, path: Path, **group: Any) -> None:
        """Add a parameter group that a part of the file says."""
        self._lines["prune", "params", len(self.groups)] = self.line(path)
        self.groups.append(group)

    def line_of_group(self, index: int) -> int | None:
        """Return the line that a parameter group comes from."""
        return self._lines["prune", "params", index]

    def handler(self, path: Path, **handler: Any) -> None:
        """Add a handler that a part of the file says."""
        self._lines["handlers", len(self.handlers)] = self.line(path)
        self.handlers.append(handler)

    def result(self) -> Source | None:
        """Return the data of the recipe, with the lines of the file; None if nothing prunes."""
        data = dict(self.top)
        if self.groups:
            data["prune"] = {**self._gathered(), **self.settings}
        if self.handlers:
            data["handlers"] = self.handlers
        if not self.groups and not self.handlers:
            return None
        single = "params" not in data.get("prune", {}) or not isinstance(data["prune"]["params"], list)
        lines: dict[Path, int] = {}
        for path, line in self._lines.items():
            if line is not None:
                lines[("prune",) if path[0] == "prune" and single else path] = line
        return Source(self.source.name, data, lines)

    def _gathered(self) -> dict[str, Any]:
        """Return a single group's settings, or several groups with their shared settings stated once."""
        if len(self.groups) == 1 and "keep" not in self.groups[0]:
            return dict(self.groups[0])
        shared = {
            key: value
            for key, value in self.groups[0].items()
            if key not in ("params", "keep") and all(group.get(key) == value for group in self.groups)
        }
        rest = [{key: value for key, value in group.items() if key not in shared} for group in self.groups]
        return {"params": rest, **shared}
