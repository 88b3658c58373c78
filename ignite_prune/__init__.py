"""ignite_prune: a model becomes sparse while PyTorch-Ignite trains it."""

from typing import TYPE_CHECKING

from ignite_prune import activation, allocation, functional, pattern, repair, saliency, schedule, structure
from ignite_prune.handlers import PruneEvents, PruneHandler
from ignite_prune.lazy import importer
from ignite_prune.masks import MaskStore
from ignite_prune.prune import prune_model
from ignite_prune.scoring import score

if TYPE_CHECKING:
    from ignite_prune.connectivity import barrier
    from ignite_prune.graph import to_networkx
    from ignite_prune.handlers.lottery_ticket import LotteryTicket
    from ignite_prune.handlers.pruning_engine import create_pruning_engine
    from ignite_prune.handlers.shrink_handler import ShrinkHandler
    from ignite_prune.rewind import Rewind
    from ignite_prune.structure import load_shrunk, shrink, trace

__version__ = "0.1.0"

__all__ = [
    "LotteryTicket",
    "MaskStore",
    "PruneEvents",
    "PruneHandler",
    "Rewind",
    "ShrinkHandler",
    "activation",
    "allocation",
    "barrier",
    "create_pruning_engine",
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
    "to_networkx",
    "trace",
]

_FILES = {
    "LotteryTicket": "handlers.lottery_ticket",
    "Rewind": "rewind",
    "ShrinkHandler": "handlers.shrink_handler",
    "barrier": "connectivity",
    "create_pruning_engine": "handlers.pruning_engine",
    "load_shrunk": "structure.load",
    "shrink": "structure.shrinking",
    "to_networkx": "graph",
    "trace": "structure.tracing",
}
__getattr__ = importer(__name__, _FILES)
