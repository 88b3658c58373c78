"""Finds the modifiers in a SparseML or llm-compressor file, at any depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ignite_prune.recipe.dialects.arithmetic import Arithmetic
from ignite_prune.recipe.recipe_error import Path
from ignite_prune.recipe.source import Source


@dataclass
class Modifier:
    """One modifier: its class's name, and its fields with expressions computed; None fields are left out."""

    name: str
    fields: dict[str, Any]
    path: Path

    def take(self, key: str, default: Any = None) -> Any:
        """Return a field and remove it, so that what is left was not used."""
        return self.fields.pop(key, default)


def modifiers(source: Source, is_read: Callable[[str], bool], variables: Mapping[str, Any]) -> Iterator[Modifier]:
    """Yield all modifiers in the order of the file.

    They stand in lists or mappings whose key ends in ``modifiers``, at the top, in stages, or in lists of stages; an
    excerpt may be a list of modifiers, or one alone.

    Args:
        source: the file.
        is_read: whether a modifier of that name is translated, so that its expressions have to be computed.
        variables: that go before the file's own.

    Raises:
        RecipeError: an expression that cannot be computed.
    """
    if _is_excerpt(source):
        listed = source.data if isinstance(source.data, list) else [source.data]
        if not isinstance(source.data, list):
            source.tags = {(0, *path): tag for path, tag in source.tags.items()}
            source.lines = {(0, *path): line for path, line in source.lines.items()}
            source.data = listed
        yield from _listed(source, listed, (), Arithmetic(variables), is_read)
    else:
        yield from _walk(source, source.data, (), {}, is_read, variables)


def _is_excerpt(source: Source) -> bool:
    tagged = [path for path, tag in source.tags.items() if tag.endswith("Modifier")]
    return any(not path or (isinstance(source.data, list) and len(path) == 1) for path in tagged)


def is_modifiers(source: Source) -> bool:
    """Return whether a file is one of modifiers."""
    return _is_excerpt(source) or has_modifiers(source.data)


def has_modifiers(data: Any, depth: int = 4) -> bool:
    """Return whether some data has lists of modifiers in it."""
    if depth == 0:
        return False
    if isinstance(data, list):
        return any(has_modifiers(each, depth - 1) for each in data)
    if not isinstance(data, Mapping):
        return False
    return any(str(key).endswith("modifiers") for key in data) or any(
        has_modifiers(each, depth - 1) for each in data.values()
    )


def _walk(
    source: Source,
    data: Any,
    path: Path,
    variables: dict[str, Any],
    is_read: Callable[[str], bool],
    first: Mapping[str, Any],
) -> Iterator[Modifier]:
    if isinstance(data, list):
        for index, each in enumerate(data):
            yield from _walk(source, each, (*path, index), variables, is_read, first)
    if not isinstance(data, Mapping):
        return
    args = data.get("args")
    own = {str(key): each for key, each in {**data, **(args if isinstance(args, Mapping) else {})}.items()}
    variables = {**variables, **{key: each for key, each in own.items() if not isinstance(each, Mapping)}}
    for key, each in data.items():
        if str(key).endswith("modifiers"):
            yield from _listed(source, each, (*path, key), Arithmetic({**variables, **first}), is_read)
        elif key not in ("args", "metadata", "args_evaluated"):
            yield from _walk(source, each, (*path, key), variables, is_read, first)


def _listed(
    source: Source, data: Any, path: Path, variables: Arithmetic, is_read: Callable[[str], bool]
) -> Iterator[Modifier]:
    """Yield the modifiers of a list or mapping."""
    items = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    for key, each in items:
        at: Path = (*path, key)
        name, fields = _named(source, key, each, at)
        if name is None:
            raise source.error("should be a modifier: a mapping tagged with its class, or {CLASS: fields}", at)
        if isinstance(each, Mapping) and set(each) == {name}:
            at = (*at, name)
        yield Modifier(name, _computed(source, fields, at, variables, is_read(name)), at)


def _named(source: Source, key: Any, each: Any, path: Path) -> tuple[str | None, Any]:
    tag = source.tags.get(path, "")
    if tag and not tag.startswith("!!python"):
        return tag.lstrip("!"), each
    if isinstance(key, str):
        return key, each
    if isinstance(each, str):
        return each, {}
    if isinstance(each, Mapping) and "type" in each and isinstance(each.get("args", {}), Mapping | None):
        return str(each["type"]), each.get("args")
    if isinstance(each, Mapping) and len(each) == 1:
        ((name, fields),) = each.items()
        return str(name), fields
    return None, None


def _computed(source: Source, fields: Any, path: Path, variables: Arithmetic, needed: bool) -> dict[str, Any]:
    if fields is not None and not isinstance(fields, (Mapping, str)):
        raise source.error("should be a mapping of a modifier's fields", path)
    found = {}
    for key, each in fields.items() if isinstance(fields, Mapping) else ():
        if source.tags.get((*path, key), "").startswith("!!python"):
            continue
        try:
            value = [variables.value(e) for e in each] if isinstance(each, list) else variables.value(each)
        except ValueError as error:
            if needed:
                raise source.error(str(error), (*path, key)) from None
            value = each
        if value is not None:
            found[str(key)] = value
    return found
