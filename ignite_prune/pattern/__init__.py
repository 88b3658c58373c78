"""Sparsity patterns, which define the entries that are pruned together (units).

A pattern reduces entry scores to unit scores, and expands a unit mask to an entry mask.

Example:
    >>> from ignite_prune import pattern
    >>> pattern.NofM(keep=2, of=4).count((8, 16))
    32
"""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer
from ignite_prune.pattern.base import Pattern
from ignite_prune.pattern.unstructured import Unstructured

if TYPE_CHECKING:
    from ignite_prune.pattern.block import Block
    from ignite_prune.pattern.channel import Channel
    from ignite_prune.pattern.coupled import Coupled
    from ignite_prune.pattern.head import Head
    from ignite_prune.pattern.n_of_m import NofM

__all__ = ["Block", "Channel", "Coupled", "Head", "NofM", "Pattern", "Unstructured"]

_FILES = {"Block": "block", "Channel": "channel", "Coupled": "coupled", "Head": "head", "NofM": "n_of_m"}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
