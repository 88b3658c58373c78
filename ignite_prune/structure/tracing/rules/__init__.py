"""Rules that propagate unit ids, one per operation; an operation without a rule freezes its inputs."""

from ignite_prune.structure.tracing.rules import (
    indexing,
    layers,
    parts,
    pointwise,
    products,
    recurrent,
    reductions,
    shapes,
)
from ignite_prune.structure.tracing.rules.op import Op, Rule

RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **reductions.RULES,
    **products.RULES,
    **shapes.RULES,
    **parts.RULES,
    **indexing.RULES,
    **layers.RULES,
    **recurrent.RULES,
}
"""Rules by name of the operation, without its overload."""

__all__ = ["RULES", "Op", "Rule"]
