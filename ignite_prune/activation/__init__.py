"""Activation sparsity: modules that keep some entries of their input and set the others to 0.

``handlers.ActivationSparsity`` applies them to the output of any layer without changing the model.

Example:
    >>> import torch
    >>> from ignite_prune import activation
    >>> activation.KWinners(k=2)(torch.tensor([[0.5, 3.0, -1.0, 2.0]]))
    tensor([[0., 3., 0., 2.]])
"""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.activation.base import Sparsifier
    from ignite_prune.activation.k_winners import KWinners, KWinners2d
    from ignite_prune.activation.learnt import Learnt
    from ignite_prune.activation.lifetime import Lifetime
    from ignite_prune.activation.top_k import TopK

__all__ = ["KWinners", "KWinners2d", "Learnt", "Lifetime", "Sparsifier", "TopK"]

_FILES = {
    "KWinners": "k_winners",
    "KWinners2d": "k_winners",
    "Learnt": "learnt",
    "Lifetime": "lifetime",
    "Sparsifier": "base",
    "TopK": "top_k",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
