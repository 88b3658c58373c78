"""ignite_prune: a model becomes sparse while PyTorch-Ignite trains it."""

from typing import TYPE_CHECKING

from ignite_prune import activation, allocation, functional, pattern, repair, saliency, schedule, structure
from ignite_prune.handlers import PruneEvents, PruneHandler
from ignite_prune.lazy import importer
from ignite_prune.masks import MaskStore
from ignite_prune.prune import prune_model
from ignite_prune.scoring import score

if TYPE_CHECKING:
    from ignite_prune.handlers.shrink_handler import ShrinkHandler
    from ignite_prune.structure import load_shrunk, shrink, trace

__version__ = "0.1.0"

__all__ = [
    "MaskStore",
    "PruneEvents",
    "PruneHandler",
    "ShrinkHandler",
    "activation",
    "allocation",
    "functional",
    "load_shrunk",
    "pattern",
    "prune_model",
    "repair",
    "saliency",
    "schedule",
    "score",
    "shrink",
    "structure",
    "trace",
]

_FILES = {
    "ShrinkHandler": "handlers.shrink_handler",
    "load_shrunk": "structure.load",
    "shrink": "structure.shrinking",
    "trace": "structure.tracing",
}
__getattr__ = importer(__name__, _FILES)
