"""What attaches to an Ignite engine."""

from typing import TYPE_CHECKING

from ignite_prune.handlers.events import PruneEvents, PruningEvents
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.handlers.engine import PruningEngine
    from ignite_prune.handlers.lottery_ticket import Control, LotteryTicket
    from ignite_prune.handlers.pruning_engine import create_pruning_engine
    from ignite_prune.handlers.shrink_handler import ShrinkHandler

__all__ = [
    "Control",
    "LotteryTicket",
    "PruneEvents",
    "PruneHandler",
    "PruningEngine",
    "PruningEvents",
    "ShrinkHandler",
    "create_pruning_engine",
]

_FILES = {
    "Control": "lottery_ticket",
    "LotteryTicket": "lottery_ticket",
    "PruningEngine": "engine",
    "ShrinkHandler": "shrink_handler",
    "create_pruning_engine": "pruning_engine",
}
__getattr__ = importer(__name__, _FILES)
