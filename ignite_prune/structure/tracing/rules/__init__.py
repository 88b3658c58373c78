"""What operations make of units: a rule an operation. One that has none freezes what it touches."""

from ignite_prune.structure.tracing.rules import arithmetic as maths
from ignite_prune.structure.tracing.rules import layers, shapes
from ignite_prune.structure.tracing.rules.op import Op, Rule

RULES: dict[str, Rule] = {**maths.RULES, **shapes.RULES, **layers.RULES}
"""By the operation's name, without its overload."""

__all__ = ["RULES", "Op", "Rule"]
