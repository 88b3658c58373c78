"""What a saliency needs beyond the weight, gathered in training or from data, by hooks that come off again."""

from ignite_prune.evidence.collection import Evidence
from ignite_prune.evidence.removal import shapley_values

__all__ = ["Evidence", "shapley_values"]
