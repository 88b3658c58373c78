"""ignite_prune: a model becomes sparse while PyTorch-Ignite trains it."""

from ignite_prune import allocation, functional, pattern, repair, saliency, schedule
from ignite_prune.handlers import PruneEvents, PruneHandler
from ignite_prune.masks import MaskStore
from ignite_prune.prune import prune_model
from ignite_prune.scoring import score

__version__ = "0.1.0"

__all__ = [
    "MaskStore",
    "PruneEvents",
    "PruneHandler",
    "allocation",
    "functional",
    "pattern",
    "prune_model",
    "repair",
    "saliency",
    "schedule",
    "score",
]
