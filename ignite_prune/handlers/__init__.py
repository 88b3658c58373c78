"""What attaches to an Ignite engine."""

from typing import TYPE_CHECKING

from ignite_prune.handlers.events import PruneEvents
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.handlers.alternating import AlternatingSparse
    from ignite_prune.handlers.dynamic import DynamicSparse
    from ignite_prune.handlers.regrowing import SET, RigL, SparseMomentum, SRigL
    from ignite_prune.handlers.shrink_handler import ShrinkHandler
    from ignite_prune.handlers.sr_ste import SRSTE
    from ignite_prune.handlers.top_kast import TopKAST

__all__ = [
    "SET",
    "SRSTE",
    "AlternatingSparse",
    "DynamicSparse",
    "PruneEvents",
    "PruneHandler",
    "RigL",
    "SRigL",
    "ShrinkHandler",
    "SparseMomentum",
    "TopKAST",
]

_FILES = {
    "AlternatingSparse": "alternating",
    "DynamicSparse": "dynamic",
    "RigL": "regrowing",
    "SET": "regrowing",
    "SRSTE": "sr_ste",
    "SRigL": "regrowing",
    "ShrinkHandler": "shrink_handler",
    "SparseMomentum": "regrowing",
    "TopKAST": "top_kast",
}
__getattr__ = importer(__name__, _FILES)
