"""Names that are in ``core`` now, for imports of earlier versions."""

from ignite_prune.core.batches import Batch, LossFn, PrepareBatch, batches
from ignite_prune.core.undisturbed import undisturbed

__all__ = ["Batch", "LossFn", "PrepareBatch", "batches", "undisturbed"]
