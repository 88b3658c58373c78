"""What attaches to an Ignite engine."""

from ignite_prune.handlers.events import PruneEvents
from ignite_prune.handlers.prune_handler import PruneHandler

__all__ = ["PruneEvents", "PruneHandler"]
