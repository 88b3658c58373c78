"""What attaches to an Ignite engine."""

from typing import TYPE_CHECKING

from ignite_prune.handlers.events import PruneEvents
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.handlers.activation_sparsity import ActivationSparsity
    from ignite_prune.handlers.group_lasso import GroupLasso
    from ignite_prune.handlers.learnt_sparsity import LearntSparsity
    from ignite_prune.handlers.progressive_masks import ProgressiveMasks
    from ignite_prune.handlers.shrink_handler import ShrinkHandler
    from ignite_prune.handlers.slimming import Slimming

_FILES = {
    "ActivationSparsity": "activation_sparsity",
    "GroupLasso": "group_lasso",
    "LearntSparsity": "learnt_sparsity",
    "ProgressiveMasks": "progressive_masks",
    "ShrinkHandler": "shrink_handler",
    "Slimming": "slimming",
}
__all__ = [
    "ActivationSparsity",
    "GroupLasso",
    "LearntSparsity",
    "ProgressiveMasks",
    "PruneEvents",
    "PruneHandler",
    "ShrinkHandler",
    "Slimming",
]

__getattr__ = importer(__name__, _FILES)
