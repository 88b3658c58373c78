"""ignite_prune: a model becomes sparse while PyTorch-Ignite trains it."""

import sys
from typing import TYPE_CHECKING

from ignite_prune import allocation, pattern, repair, saliency, schedule
from ignite_prune._utils.lazy import importer
from ignite_prune._utils.renamed import RenamedModules
from ignite_prune.core.check_report import CheckReport, PrunedWeightsAlive, SparsityWarning
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.handlers import PruneEvents, PruneHandler
from ignite_prune.update.calibration import Calibration

if TYPE_CHECKING:
    from ignite_prune import activation, functional, structure
    from ignite_prune.export.networkx_graph import to_networkx
    from ignite_prune.handlers.distillation.distillation import Distillation
    from ignite_prune.handlers.lottery.create_pruning_engine import create_pruning_engine
    from ignite_prune.handlers.lottery.lottery_ticket import LotteryTicket
    from ignite_prune.handlers.lottery.mode_connectivity import barrier
    from ignite_prune.handlers.lottery.rewind import Rewind
    from ignite_prune.handlers.shrink_handler import ShrinkHandler
    from ignite_prune.report.page import report
    from ignite_prune.structure import load_shrunk, shrink, trace
    from ignite_prune.update.blocks.prune_blocks import prune_blocks
    from ignite_prune.update.blocks.prune_checkpoint import prune_checkpoint
    from ignite_prune.update.one_shot import prune_model, score

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "CheckReport",
    "Distillation",
    "LotteryTicket",
    "MaskStore",
    "PruneEvents",
    "PruneHandler",
    "PrunedWeightsAlive",
    "Rewind",
    "ShrinkHandler",
    "SparsityWarning",
    "activation",
    "allocation",
    "barrier",
    "create_pruning_engine",
    "functional",
    "load_shrunk",
    "pattern",
    "prune_blocks",
    "prune_checkpoint",
    "prune_model",
    "repair",
    "report",
    "saliency",
    "schedule",
    "score",
    "shrink",
    "structure",
    "to_networkx",
    "trace",
]

_FILES = {
    "Distillation": "handlers.distillation.distillation",
    "LotteryTicket": "handlers.lottery.lottery_ticket",
    "Rewind": "handlers.lottery.rewind",
    "ShrinkHandler": "handlers.shrink_handler",
    "barrier": "handlers.lottery.mode_connectivity",
    "create_pruning_engine": "handlers.lottery.create_pruning_engine",
    "load_shrunk": "structure.slicing.checkpoint",
    "prune_blocks": "update.blocks.prune_blocks",
    "prune_checkpoint": "update.blocks.prune_checkpoint",
    "prune_model": "update.one_shot",
    "score": "update.one_shot",
    "shrink": "structure.slicing.shrink",
    "to_networkx": "export.networkx_graph",
    "trace": "structure.tracing.trace",
}
_ROOMS = ("activation", "export", "functional", "measure", "recipe", "report", "structure")  # imported when used
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES, rooms=_ROOMS)
sys.meta_path.append(
    RenamedModules(
        {
            "ignite_prune.connectivity": "ignite_prune.handlers.lottery.mode_connectivity",
            "ignite_prune.handlers.lottery_ticket": "ignite_prune.handlers.lottery.lottery_ticket",
            "ignite_prune.lottery": "ignite_prune.handlers.lottery",
            "ignite_prune.lottery.controls": "ignite_prune.handlers.lottery.controls",
            "ignite_prune.lottery.mode_connectivity": "ignite_prune.handlers.lottery.mode_connectivity",
            "ignite_prune.lottery.rewind": "ignite_prune.handlers.lottery.rewind",
            "ignite_prune.lottery.snapshot": "ignite_prune.handlers.lottery.snapshot",
            "ignite_prune.masks": "ignite_prune.core.mask_store",
            "ignite_prune.rewind": "ignite_prune.handlers.lottery.snapshot",
            "ignite_prune.select": "ignite_prune.core.selection",
        }
    )
)
