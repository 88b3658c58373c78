"""Report pages of pruned models: ``ignite_prune.report(...)`` and ``ignite_prune.report.report(...)`` are the same."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.report.page import report

__all__ = ["report"]

_FILES = {"report": "page"}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)


class _CallableReport(ModuleType):
    """A module that is called as its function, which has the room's name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from ignite_prune.report.page import report

        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableReport
