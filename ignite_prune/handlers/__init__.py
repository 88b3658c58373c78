"""What attaches to an Ignite engine."""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer
from ignite_prune.handlers.events import PruneEvents, PruningEvents
from ignite_prune.handlers.prune_handler import PruneHandler

if TYPE_CHECKING:
    from ignite_prune.handlers.activation_sparsity import ActivationSparsity
    from ignite_prune.handlers.distillation.distillation import Distillation
    from ignite_prune.handlers.distillation.terms import AttentionMSE, HiddenMSE, LogitsMSE, SoftTargets
    from ignite_prune.handlers.lottery.create_pruning_engine import create_pruning_engine
    from ignite_prune.handlers.lottery.lottery_ticket import Control, LotteryTicket
    from ignite_prune.handlers.lottery.pruning_engine import PruningEngine
    from ignite_prune.handlers.progressive_masks import ProgressiveMasks
    from ignite_prune.handlers.regularisers.group_lasso import GroupLasso
    from ignite_prune.handlers.regularisers.learnt_sparsity import LearntSparsity
    from ignite_prune.handlers.regularisers.slimming import Slimming
    from ignite_prune.handlers.run_warning import RunWarning
    from ignite_prune.handlers.shrink_handler import ShrinkHandler
    from ignite_prune.handlers.sparse_training.alternating_sparse import AlternatingSparse
    from ignite_prune.handlers.sparse_training.dynamic_sparse import DynamicSparse
    from ignite_prune.handlers.sparse_training.rigl import RigL, SRigL
    from ignite_prune.handlers.sparse_training.set import SET
    from ignite_prune.handlers.sparse_training.sparse_momentum import SparseMomentum
    from ignite_prune.handlers.sparse_training.sr_ste import SRSTE
    from ignite_prune.handlers.sparse_training.top_kast import TopKAST

_FILES = {
    "ActivationSparsity": "activation_sparsity",
    "AlternatingSparse": "sparse_training.alternating_sparse",
    "AttentionMSE": "distillation.terms",
    "Control": "lottery.lottery_ticket",
    "Distillation": "distillation.distillation",
    "DynamicSparse": "sparse_training.dynamic_sparse",
    "GroupLasso": "regularisers.group_lasso",
    "HiddenMSE": "distillation.terms",
    "LearntSparsity": "regularisers.learnt_sparsity",
    "LogitsMSE": "distillation.terms",
    "LotteryTicket": "lottery.lottery_ticket",
    "ProgressiveMasks": "progressive_masks",
    "PruningEngine": "lottery.pruning_engine",
    "RigL": "sparse_training.rigl",
    "RunWarning": "run_warning",
    "SET": "sparse_training.set",
    "SRSTE": "sparse_training.sr_ste",
    "SRigL": "sparse_training.rigl",
    "ShrinkHandler": "shrink_handler",
    "Slimming": "regularisers.slimming",
    "SoftTargets": "distillation.terms",
    "SparseMomentum": "sparse_training.sparse_momentum",
    "TopKAST": "sparse_training.top_kast",
    "create_pruning_engine": "lottery.create_pruning_engine",
}
__all__ = [
    "SET",
    "SRSTE",
    "ActivationSparsity",
    "AlternatingSparse",
    "AttentionMSE",
    "Control",
    "Distillation",
    "DynamicSparse",
    "GroupLasso",
    "HiddenMSE",
    "LearntSparsity",
    "LogitsMSE",
    "LotteryTicket",
    "ProgressiveMasks",
    "PruneEvents",
    "PruneHandler",
    "PruningEngine",
    "PruningEvents",
    "RigL",
    "RunWarning",
    "SRigL",
    "ShrinkHandler",
    "Slimming",
    "SoftTargets",
    "SparseMomentum",
    "TopKAST",
    "create_pruning_engine",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
