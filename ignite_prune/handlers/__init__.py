"""What attaches to an Ignite engine."""

from typing import TYPE_CHECKING

from ignite_prune.handlers.events import PruneEvents, PruningEvents
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.handlers.activation_sparsity import ActivationSparsity
    from ignite_prune.handlers.alternating import AlternatingSparse
    from ignite_prune.handlers.dynamic import DynamicSparse
    from ignite_prune.handlers.engine import PruningEngine
    from ignite_prune.handlers.group_lasso import GroupLasso
    from ignite_prune.handlers.learnt_sparsity import LearntSparsity
    from ignite_prune.handlers.lottery_ticket import Control, LotteryTicket
    from ignite_prune.handlers.progressive_masks import ProgressiveMasks
    from ignite_prune.handlers.pruning_engine import create_pruning_engine
    from ignite_prune.handlers.regrowing import SET, RigL, SparseMomentum, SRigL
    from ignite_prune.handlers.shrink_handler import ShrinkHandler
    from ignite_prune.handlers.slimming import Slimming
    from ignite_prune.handlers.sr_ste import SRSTE
    from ignite_prune.handlers.top_kast import TopKAST

_FILES = {
    "ActivationSparsity": "activation_sparsity",
    "AlternatingSparse": "alternating",
    "Control": "lottery_ticket",
    "DynamicSparse": "dynamic",
    "GroupLasso": "group_lasso",
    "LearntSparsity": "learnt_sparsity",
    "LotteryTicket": "lottery_ticket",
    "ProgressiveMasks": "progressive_masks",
    "PruningEngine": "engine",
    "RigL": "regrowing",
    "SET": "regrowing",
    "SRSTE": "sr_ste",
    "SRigL": "regrowing",
    "ShrinkHandler": "shrink_handler",
    "Slimming": "slimming",
    "SparseMomentum": "regrowing",
    "TopKAST": "top_kast",
    "create_pruning_engine": "pruning_engine",
}
__all__ = [
    "SET",
    "SRSTE",
    "ActivationSparsity",
    "AlternatingSparse",
    "Control",
    "DynamicSparse",
    "GroupLasso",
    "LearntSparsity",
    "LotteryTicket",
    "ProgressiveMasks",
    "PruneEvents",
    "PruneHandler",
    "PruningEngine",
    "PruningEvents",
    "RigL",
    "SRigL",
    "ShrinkHandler",
    "Slimming",
    "SparseMomentum",
    "TopKAST",
    "create_pruning_engine",
]

__getattr__ = importer(__name__, _FILES)
