"""Really smaller: which slices of a model go together, and cutting them out."""

from typing import TYPE_CHECKING

from ignite_prune.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.structure.cost import Cost, Flops, Latency, Parameters
    from ignite_prune.structure.load import load_shrunk, shrunk_state
    from ignite_prune.structure.shrinking import Report, shrink
    from ignite_prune.structure.slicing import Indices, slice_
    from ignite_prune.structure.slots import Kept, Slot, UnitGroup
    from ignite_prune.structure.structure import Structure
    from ignite_prune.structure.tracing import declare, trace

__all__ = [
    "Cost",
    "Flops",
    "Indices",
    "Kept",
    "Latency",
    "Parameters",
    "Report",
    "Slot",
    "Structure",
    "UnitGroup",
    "declare",
    "load_shrunk",
    "shrink",
    "shrunk_state",
    "slice_",
    "trace",
]

_FILES = {
    "Cost": "cost",
    "Flops": "cost",
    "Latency": "cost",
    "Parameters": "cost",
    "load_shrunk": "load",
    "shrunk_state": "load",
    "Report": "shrinking",
    "shrink": "shrinking",
    "Indices": "slicing",
    "slice_": "slicing",
    "Kept": "slots",
    "Slot": "slots",
    "UnitGroup": "slots",
    "Structure": "structure",
    "declare": "tracing",
    "trace": "tracing",
}
__getattr__ = importer(__name__, _FILES)
