"""RecipeError: what is wrong with a recipe, and in which line."""

from __future__ import annotations

Path = tuple[str | int, ...]


class RecipeError(ValueError):
    """A recipe that cannot be read, or that does not fit the model or the run.

    Args:
        problem: what was given, what is wrong, and what to write instead.
        path: the field, as keys and indices from the top.
        line: its line in the file, counted from 1.
        source: the file's name; None for text or a dict.
    """

    def __init__(self, problem: str, path: Path = (), line: int | None = None, source: str | None = None) -> None:
        self.problem, self.path, self.line, self.source = problem, path, line, source
        where = ", ".join(each for each in (source, f"line {line}" if line else None, dotted(path)) if each)
        super().__init__(f"{where}: {problem}" if where else problem)


def dotted(path: Path) -> str:
    """Return a path as people write it.

    Example:
        >>> dotted(("prune", "groups", 0, "params"))
        'prune.groups[0].params'
    """
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path).removeprefix(".")
