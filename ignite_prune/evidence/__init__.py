"""What a saliency needs besides the weight, collected in training or from data by removable hooks."""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.evidence.evidence import Evidence
    from ignite_prune.evidence.shapley import shapley_values

__all__ = ["Evidence", "shapley_values"]

_FILES = {"Evidence": "evidence", "shapley_values": "shapley"}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
