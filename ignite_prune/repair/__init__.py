"""Repairs: steps after an update that reduce the error of pruning, such as weight updates or new statistics.

``prune_model(..., repair=repair.OBS())``, ``PruneHandler(..., repair=[repair.Bias(), repair.BatchNorm()])``.
"""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.repair.base import Repair
    from ignite_prune.repair.batch_norm import BatchNorm
    from ignite_prune.repair.bias import Bias
    from ignite_prune.repair.dsnot import DSnoT
    from ignite_prune.repair.obs import OBS
    from ignite_prune.repair.sparsegpt import SparseGPT

__all__ = ["OBS", "BatchNorm", "Bias", "DSnoT", "Repair", "SparseGPT"]

_FILES = {
    "OBS": "obs",
    "BatchNorm": "batch_norm",
    "Bias": "bias",
    "DSnoT": "dsnot",
    "Repair": "base",
    "SparseGPT": "sparsegpt",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
