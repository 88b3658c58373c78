"""Lazy imports: a package's public names are imported at first access, which keeps ``import ignite_prune`` fast."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

from ignite_prune._utils.extras import EXTRAS, missing


def importer(
    package: str, files: Mapping[str, str], rooms: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a ``__getattr__`` and a ``__dir__`` for a package.

    A package assigns them under ``if not TYPE_CHECKING``: a type checker that sees a module's ``__getattr__`` accepts
    every name, also a misspelt one. ``__dir__`` lists the names that are not imported yet, for tab completion.

    Args:
        package: the package's ``__name__``.
        files: module of each public name, relative to the package.
        rooms: names of subpackages.
    """

    def get(name: str) -> Any:
        if name in rooms:
            return import_module(f"{package}.{name}")
        if name not in files:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(f"{package}.{files[name]}"), name)
        except ModuleNotFoundError as error:
            absent = (error.name or "").partition(".")[0]
            if absent in EXTRAS:
                raise missing(absent, f"{package}.{name}") from None
            raise

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *files, *rooms})

    return get, names
