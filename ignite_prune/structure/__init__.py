"""Really smaller: which slices of a model go together, and cutting them out."""

from typing import TYPE_CHECKING

from ignite_prune.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.structure.groups import Slot, Structure, UnitGroup, declare, trace
    from ignite_prune.structure.load import load_shrunk, shrunk_state
    from ignite_prune.structure.shrinking import Report, shrink
    from ignite_prune.structure.slicing import Indices

__all__ = [
    "Indices",
    "Report",
    "Slot",
    "Structure",
    "UnitGroup",
    "declare",
    "load_shrunk",
    "shrink",
    "shrunk_state",
    "trace",
]

_FILES = {
    "load_shrunk": "load",
    "shrunk_state": "load",
    "Report": "shrinking",
    "shrink": "shrinking",
    "Indices": "slicing",
    "Slot": "groups",
    "Structure": "groups",
    "UnitGroup": "groups",
    "declare": "groups",
    "trace": "groups",
}
__getattr__ = importer(__name__, _FILES)
