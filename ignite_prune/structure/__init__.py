"""Structured pruning: find the coupled units of a model, and slice pruned units off its tensors."""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.structure.cost import Cost, Flops, Latency, Parameters
    from ignite_prune.structure.declared import Units, declare
    from ignite_prune.structure.mixture_experts import Experts, experts
    from ignite_prune.structure.residual_blocks import ResidualBlocks, blocks
    from ignite_prune.structure.slicing.checkpoint import load_shrunk, shrunk_state
    from ignite_prune.structure.slicing.model_edit import Indices, slice_
    from ignite_prune.structure.slicing.shrink import Report, shrink
    from ignite_prune.structure.structure import Structure
    from ignite_prune.structure.token_map import TokenMap, vocabulary
    from ignite_prune.structure.tracing.trace import trace
    from ignite_prune.structure.unit_group import Kept, Slot, UnitGroup

__all__ = [
    "Cost",
    "Experts",
    "Flops",
    "Indices",
    "Kept",
    "Latency",
    "Parameters",
    "Report",
    "ResidualBlocks",
    "Slot",
    "Structure",
    "TokenMap",
    "UnitGroup",
    "Units",
    "blocks",
    "declare",
    "experts",
    "load_shrunk",
    "shrink",
    "shrunk_state",
    "slice_",
    "trace",
    "vocabulary",
]

_FILES = {
    "Cost": "cost",
    "Flops": "cost",
    "Latency": "cost",
    "Parameters": "cost",
    "load_shrunk": "slicing.checkpoint",
    "shrunk_state": "slicing.checkpoint",
    "ResidualBlocks": "residual_blocks",
    "blocks": "residual_blocks",
    "Experts": "mixture_experts",
    "experts": "mixture_experts",
    "TokenMap": "token_map",
    "vocabulary": "token_map",
    "Report": "slicing.shrink",
    "shrink": "slicing.shrink",
    "Indices": "slicing.model_edit",
    "slice_": "slicing.model_edit",
    "Kept": "unit_group",
    "Slot": "unit_group",
    "UnitGroup": "unit_group",
    "Structure": "structure",
    "Units": "declared",
    "declare": "declared",
    "trace": "tracing.trace",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
