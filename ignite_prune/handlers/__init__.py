"""What attaches to an Ignite engine."""

from typing import TYPE_CHECKING

from ignite_prune.handlers.events import PruneEvents
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.handlers.activation_sparsity import ActivationSparsity
    from ignite_prune.handlers.shrink_handler import ShrinkHandler

__all__ = ["ActivationSparsity", "PruneEvents", "PruneHandler", "ShrinkHandler"]

__getattr__ = importer(__name__, {"ActivationSparsity": "activation_sparsity", "ShrinkHandler": "shrink_handler"})
