"""What a saliency needs beyond the weight, gathered in training or from data, by hooks that come off again."""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.evidence.collection import Evidence
    from ignite_prune.evidence.collectors.shapley import shapley_values

__all__ = ["Evidence", "shapley_values"]

_FILES = {"Evidence": "collection", "shapley_values": "collectors.shapley"}
__getattr__ = importer(__name__, _FILES)
