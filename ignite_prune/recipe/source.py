"""Source: plain data of a YAML or JSON text, with the line of every value.

A recipe comes from other people, so that nothing in it may build an object, fill the memory or take long. PyYAML's
``safe_load`` builds no objects, but expands aliases without a limit, keeps the last of two equal keys in silence and
forgets where a value stood. So the nodes that PyYAML composes are turned into data here: the size of the text, the
number of events and their depth are limited before anything is composed, and the number of values while it is expanded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from ignite_prune._utils.extras import needed
from ignite_prune.recipe.recipe_error import Path, RecipeError, dotted

LARGEST = 1 << 20  # bytes; the recipes of other tools have at most some 50 KB
VALUES = 20_000
DEPTH = 60
_PLAIN = "tag:yaml.org,2002:"


@dataclass
class Source:
    """The data of a recipe, and where it stood.

    Args:
        name: the file's; None for text or a dict.
        data: mappings, lists, strings, numbers, bools and None.
        lines: the line of each value, counted from 1.
        tags: the tags that YAML does not define itself, such as ``!GMPruningModifier``.
        repeated: fields that stand in the same mapping twice, with both lines; the last one is in ``data``.
    """

    name: str | None
    data: Any
    lines: dict[Path, int] = field(default_factory=dict)
    tags: dict[Path, str] = field(default_factory=dict)
    repeated: list[tuple[Path, int, int]] = field(default_factory=list)

    def line(self, path: Path) -> int | None:
        """Return the line of a value, or of what is nearest around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def at(self, path: Path) -> Any:
        """Return a value; None where there is none."""
        value: Any = self.data
        for each in path:
            try:
                value = value[each]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def error(self, problem: str, path: Path = ()) -> RecipeError:
        """Return an error about a value."""
        return RecipeError(problem, path, self.line(path), self.name)

    def strict(self) -> Source:
        """Return this source; raise if it has tags or repeated fields, which a recipe of this package may not."""
        for path, tag in self.tags.items():
            raise self.error(f"a recipe has no tags, but given {tag!r}; recipe.read() reads those of other tools", path)
        for path, first, again in self.repeated:
            raise RecipeError(f"given twice, in lines {first} and {again}; remove one", path, again, self.name)
        return self


def is_text(given: Any) -> bool:
    """Return whether a str is a recipe's text, rather than a file's name."""
    return isinstance(given, str) and ("\n" in given or ": " in given or given.lstrip()[:1] in ("{", "!", "-"))


def document_of(given: Any) -> Source:
    """Return the data of a file, a text or a mapping.

    Args:
        given: a path, YAML or JSON text, or a mapping, also one of OmegaConf.

    Raises:
        TypeError: something else.
        RecipeError: there is no such file, it is too large, or it is not YAML.
    """
    if isinstance(given, Mapping):
        return Source(None, _plain(given, [VALUES], DEPTH))
    if is_text(given):
        return parsed(given)
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"A recipe should be a path, text or a mapping, but given {type(given)}")
    return parsed(text_of_file(given), os.fspath(given))


def text_of_file(path: str | os.PathLike[str]) -> str:
    """Return the text of a file that is not too large."""
    file, name = FilePath(path), os.fspath(path)
    try:
        if file.stat().st_size > LARGEST:
            raise RecipeError(
                f"the file has {file.stat().st_size / 2**20:.1f} MiB, and a recipe at most {LARGEST >> 20}; is it one?",
                source=name,
            )
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError("there is no such file", source=name) from None
    except IsADirectoryError:
        raise RecipeError("it is a folder, not a file", source=name) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"the file is not text in UTF-8: {error.reason} at byte {error.start}", source=name) from None


def parsed(text: str, name: str | None = None, first_line: int = 1) -> Source:
    """Return the data of YAML text.

    Args:
        text: YAML, or JSON.
        name: the file's.
        first_line: the number of the text's first line in the file.

    Raises:
        RecipeError: it is too large, too deep, not YAML, has an alias within its own anchor, or a key that is a list or
            mapping.
    """
    needed("yaml")
    import yaml

    if len(text) > LARGEST:
        raise RecipeError(
            f"the text has {len(text) / 2**20:.1f} MiB, and a recipe at most {LARGEST >> 20}", source=name
        )
    loader = _loader(yaml)
    try:
        _check_events(yaml.parse(text, Loader=loader), name, first_line)
        node = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + first_line if mark else None
        raise RecipeError(f"not YAML: {error.problem or error.context}", line=line, source=name) from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise RecipeError(f"not YAML: {str(error).splitlines()[0]}", source=name) from None
    return _Expansion(yaml, Source(name, None), first_line).run(node)


def _loader(yaml: Any) -> Any:
    """Return PyYAML's loader whose floats are those of YAML 1.2 too: it takes ``1e-3`` for a string otherwise."""
    import re

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    Loader.add_implicit_resolver(
        f"{_PLAIN}float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
    return Loader


def _check_events(events: Iterator[Any], name: str | None, first_line: int) -> None:
    """Raise before something large or deep is composed, which takes memory and recursion."""
    depth = 0
    for number, event in enumerate(events):
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if number > 3 * VALUES or depth > DEPTH:
            problem = f"it is nested deeper than {DEPTH}" if depth > DEPTH else f"it has more than {VALUES} values"
            raise RecipeError(problem, line=event.start_mark.line + first_line, source=name)


class _Expansion:
    """Composed nodes to data; see the top of the file."""

    def __init__(self, yaml: Any, source: Source, first_line: int) -> None:
        self.yaml, self.source, self.first_line = yaml, source, first_line
        self.left, self.around = VALUES, list[Any]()
        self.scalars = yaml.constructor.SafeConstructor()

    def run(self, node: Any) -> Source:
        if node is not None:
            self.source.data = self.value(node, ())
        return self.source

    def value(self, node: Any, path: Path) -> Any:
        """Return a node's data, and record its line and tag."""
        line = self.source.lines[path] = node.start_mark.line + self.first_line
        self.left -= 1
        if self.left < 0:
            raise self.source.error(f"aliases expand it to more than {VALUES} values")
        if any(node is each for each in self.around) or len(self.around) > DEPTH:
            raise self.source.error("an anchor holds an alias of its own, so that it has no end", path)
        if not node.tag.startswith(_PLAIN) or node.tag.startswith(f"{_PLAIN}python/"):
            self.source.tags[path] = node.tag.replace(_PLAIN, "!!")
        if isinstance(node, self.yaml.ScalarNode):
            return self.scalar(node, path)
        self.around.append(node)
        try:
            if isinstance(node, self.yaml.SequenceNode):
                return [self.value(each, (*path, index)) for index, each in enumerate(node.value)]
            found: dict[Any, Any] = {}
            self.mapping(node, path, line, found)
            return found
        finally:
            self.around.pop()

    def mapping(self, node: Any, path: Path, line: int, found: dict[Any, Any]) -> None:
        """Fill in the entries of a mapping: those of ``<<`` first, which its own replace."""
        own: dict[Any, int] = {}
        for key, value in node.value:
            if key.tag == f"{_PLAIN}merge":
                for each in reversed(value.value) if isinstance(value, self.yaml.SequenceNode) else [value]:
                    merged = self.value(each, path)
                    if not isinstance(merged, dict):
                        raise self.source.error("<< should be followed by an alias of a mapping", path)
                    found.update(merged)
        for key, value in node.value:
            if key.tag == f"{_PLAIN}merge":
                continue
            if not isinstance(key, self.yaml.ScalarNode):
                raise self.source.error("a key should be a name or a number, but given a list or mapping", path)
            name, at = self.scalar(key, path), key.start_mark.line + self.first_line
            here: Path = (*path, name)
            if name in own:
                self.source.repeated.append((here, own[name], at))
                self.forget(here)
            own[name] = at
            found[name] = self.value(value, here)
            self.source.lines[here] = at
        self.source.lines[path] = line

    def forget(self, path: Path) -> None:
        """Forget the tags within a value that another one replaces."""
        tags = self.source.tags
        for each in [each for each in tags if each[: len(path)] == path]:
            del tags[each]

    def scalar(self, node: Any, path: Path) -> Any:
        """Return a scalar: null, bool, int or float; anything else, dates too, as it stands there."""
        kind = node.tag.removeprefix(_PLAIN)
        if kind == "null":
            return None
        try:
            if kind == "bool":
                return self.scalars.construct_yaml_bool(node)
            if kind == "int" and ":" not in node.value:  # 2:4 is no number to the base of 60
                return self.scalars.construct_yaml_int(node)
            if kind == "float" and ":" not in node.value:
                return self.scalars.construct_yaml_float(node)
        except ValueError:
            raise self.source.error(f"not a number: {node.value:.40}", path) from None
        return node.value


def _plain(value: Any, left: list[int], depth: int) -> Any:
    """Return mappings and sequences of any kind as dicts and lists, other values as they are."""
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise RecipeError(f"the mapping has more than {VALUES} values, or is nested deeper than {DEPTH}")
    if isinstance(value, Mapping):
        return {key: _plain(value[key], left, depth - 1) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(each, left, depth - 1) for each in value]
    return value


__all__ = ["Source", "document_of", "dotted", "is_text", "parsed", "text_of_file"]
