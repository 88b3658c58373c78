"""Former module paths, which can still be imported, with a DeprecationWarning, until the next release."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class RenamedModules(MetaPathFinder, Loader):
    """A meta path finder that imports modules under their former paths.

    Args:
        paths: the new absolute path of each former absolute path.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self._paths else None

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__
        present = self._paths[former]
        warnings.warn(
            f"{former} is now {present}; the former path is removed in the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[former] = import_module(present)
