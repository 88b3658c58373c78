"""Rules that propagate unit ids, one per operation; an operation without a rule freezes its inputs."""

from ignite_prune.structure.tracing.rules import arithmetic as maths
from ignite_prune.structure.tracing.rules import layers, shapes
from ignite_prune.structure.tracing.rules.op import Op, Rule

RULES: dict[str, Rule] = {**maths.RULES, **shapes.RULES, **layers.RULES}
"""Rules by name of the operation, without its overload."""

__all__ = ["RULES", "Op", "Rule"]
