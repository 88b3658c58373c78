"""Converts pydantic's errors to a RecipeError: file, line, field, the value given, near matches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from ignite_prune.recipe.recipe_error import Path, RecipeError, dotted
from ignite_prune.recipe.source import Source

_SHOWN = 5
_PLAIN = {
    "missing": "is missing",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "dict_type": "should be a mapping",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "none_required": "should be null",
}


def as_recipe_error(source: Source, error: ValidationError) -> RecipeError:
    """Return one error that names all problems, the first few in full."""
    found: dict[Path, list[tuple[str, str]]] = {}
    for each in error.errors(include_url=False):
        path = _path(source.data, (*each["loc"], *_extra(each)), each["type"] == "missing")
        problem = _problem(each)
        path = _argument(source, path, problem)
        found.setdefault(path, []).append((each["type"], problem))
    problems = [(path, _joined(several)) for path, several in found.items()]
    lines = []
    for path, problem in problems[1:_SHOWN]:
        lines.append(f"\n  line {source.line(path)}, {dotted(path)}: {problem}{_given(source, path)}")
    if len(problems) > _SHOWN:
        lines.append(f"\n  and {len(problems) - _SHOWN} more")
    path, problem = problems[0]
    return source.error(problem + ("" if "given" in problem else _given(source, path)) + "".join(lines), path)


def _argument(source: Source, path: Path, problem: str) -> Path:
    """Return the path of the argument that a piece's own error is about."""
    name = problem.removeprefix("Argument ").split(" ")[0] if problem.startswith("Argument ") else None
    value = source.at(path)
    return (*path, name) if name is not None and isinstance(value, dict) and name in value else path


def _extra(each: Any) -> tuple[str, ...]:
    return (each["ctx"]["field"],) if each["type"] == "unknown" else ()


def _problem(each: Any) -> str:
    if each["type"] == "literal_error":
        return f"should be {each['ctx']['expected']}"
    return _PLAIN.get(each["type"]) or str(each["msg"]).removeprefix("Value error, ")


def _joined(several: list[tuple[str, str]]) -> str:
    """Return one text of what the members of a union say: the most telling alone, or all."""
    telling = [text for kind, text in several if kind in ("value_error", "unknown", "missing")]
    texts = list(dict.fromkeys(telling[:1] if telling else [text for _, text in several if text != "should be null"]))
    return " or ".join([texts[0], *(text.removeprefix("should be ") for text in texts[1:])])


def _given(source: Source, path: Path) -> str:
    value = source.at(path)
    return "" if value is None or isinstance(value, (dict, list)) else f", but given {value!r:.80}"


def _path(data: Any, loc: tuple[Any, ...], missing: bool) -> Path:
    """Return a location in the file: without what pydantic adds, with what the short forms leave out."""
    path: list[str | int] = []
    for index, each in enumerate(loc):
        if isinstance(data, dict) and each not in data and len(data) == 1:
            (key, inner), rest = next(iter(data.items())), loc[index + 1 :]
            if isinstance(inner, dict) and (each in inner or (missing and not rest)):
                path.append(key)
                data = inner
        inside = isinstance(data, dict) and each in data
        if inside or (isinstance(data, list) and isinstance(each, int) and each < len(data)):
            path.append(each)
            data = data[each]
        elif missing and index == len(loc) - 1:
            path.append(each)
    return tuple(path)


def mentioned(data: Any, path: Path, text: str) -> Iterator[Path]:
    """Yield where strings of the data stand that an error quotes, and fields that it names as an argument."""
    value = data
    for each in path:
        try:
            value = value[each]
        except (KeyError, IndexError, TypeError):
            path = path[: path.index(each)]
            break
    stack: list[tuple[Path, Any]] = [(path, value)]
    fields = []
    while stack:
        at, value = stack.pop()
        if isinstance(value, str) and repr(value) in text:
            yield at
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in items:
            stack.append(((*at, key), each))
            if isinstance(key, str) and f"Argument {key} " in text:
                fields.append((*at, key))
    yield from fields
