"""What training can be made to want beside a small loss: zeros, in units, of an amount that is learnt.

Pure functions of tensors; what attaches to an engine stands in ``ignite_prune.handlers``.
"""

from ignite_prune.regularise.gate import Gate, SoftMovement, SoftThreshold
from ignite_prune.regularise.lasso import gradient, norms, proximal_
from ignite_prune.regularise.progressive import part_way
from ignite_prune.regularise.soft import soft_mask, soft_threshold, straight_through

__all__ = [
    "Gate",
    "SoftMovement",
    "SoftThreshold",
    "gradient",
    "norms",
    "part_way",
    "proximal_",
    "soft_mask",
    "soft_threshold",
    "straight_through",
]
