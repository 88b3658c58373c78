"""Penalties and gates that drive weights, or whole units, to zero in training; losses of distillation.

They are pure functions of tensors; ``ignite_prune.handlers`` attaches them to an engine.
"""

from ignite_prune.regularise.distillation import attention_error, hidden_error, logits_error, soft_targets
from ignite_prune.regularise.gate import Gate, SoftMovement, SoftThreshold
from ignite_prune.regularise.lasso import gradient, norms, proximal_
from ignite_prune.regularise.progressive import part_way
from ignite_prune.regularise.soft import soft_mask, soft_threshold, straight_through

__all__ = [
    "Gate",
    "SoftMovement",
    "SoftThreshold",
    "attention_error",
    "gradient",
    "hidden_error",
    "logits_error",
    "norms",
    "part_way",
    "proximal_",
    "soft_mask",
    "soft_targets",
    "soft_threshold",
    "straight_through",
]
