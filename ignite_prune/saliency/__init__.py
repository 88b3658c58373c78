"""What a weight is worth: formulas, one family a file. Larger = more important.

Example:
    >>> import torch
    >>> from ignite_prune import saliency
    >>> saliency.Magnitude()("fc.weight", torch.tensor([[-2.0, 0.5]]))
    tensor([[2.0000, 0.5000]])
"""

from ignite_prune.saliency.base import NonFiniteSaliency, Saliency, as_saliency
from ignite_prune.saliency.given import FromCallable, Given
from ignite_prune.saliency.magnitude import Magnitude
from ignite_prune.saliency.random import Random

__all__ = ["FromCallable", "Given", "Magnitude", "NonFiniteSaliency", "Random", "Saliency", "as_saliency"]
