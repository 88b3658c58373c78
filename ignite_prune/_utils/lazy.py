"""Lazy imports: a package's public names are imported at first access, which keeps ``import ignite_prune`` fast."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any


def importer(package: str, files: Mapping[str, str], rooms: Collection[str] = ()) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package.

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
        return getattr(import_module(f"{package}.{files[name]}"), name)

    return get
