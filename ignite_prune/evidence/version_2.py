"""Keys of needs in state version 2: the representations of their fields, with the names of that version.

They are compared with the keys of loaded checkpoints, so a rename in the package must not change them.
"""

from __future__ import annotations

from ignite_prune.saliency import needs
from ignite_prune.saliency.needs import Need

_TERMS = {
    "abs": "add_size",
    "square": "add_square",
    "product": "add_product",
    "abs-product": "add_product_size",
    "square-product": "add_product_square",
}
_MEASURES = {
    "active-share": "active_share",
    "rank": "map_rank",
    "abs-gradient": "gradient_size",
    "product": "product",
    "abs-product": "product_size",
}


def key_in_version_2(need: Need) -> str:
    """Return the key that version 2 wrote for a need."""
    name, fields = _form(need)
    return f"{name}({', '.join(fields)})"


def _form(need: Need) -> tuple[str, list[str]]:
    if isinstance(need, needs.Gradients):
        memory = need.memory
        term = _TERMS.get(need.name or "", need.term.__qualname__)
        kept = f"Memory(decay={memory.decay!r}, dtype={memory.dtype!r}, lasting={memory.lasting!r})"
        return "Gradients", [term, kept, *map(repr, (need.mean, need.per_sample, need.by_unit))]
    if isinstance(need, needs.Activations):
        measure = _MEASURES.get(need.name or "", need.measure.__qualname__)
        return "Activations", [measure, repr(need.gradient), repr(need.maps)]
    if isinstance(need, needs.FisherBlocks):
        return "FisherBlocks", [repr(need.block), repr(need.per_sample)]
    if isinstance(need, needs.HeadGates):
        return "HeadGates", [repr(need.per_sample)]
    if isinstance(need, needs.Curvature):
        return "Curvature", [repr(need.method)]
    if isinstance(need, needs.HessianGradient):
        return "HessianGradient", [repr(need.temperature)]
    if isinstance(need, needs.SynapticFlow):
        return "SynapticFlow", [repr(need.bias)]
    if isinstance(need, needs.UnitRemoval):
        return "UnitRemoval", [repr(need.samples), repr(need.seed), repr(need.exact)]
    return type(need).__name__, []
