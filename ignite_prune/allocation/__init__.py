"""Allocations: division of one sparsity over parameters, in whole numbers of units.

Example:
    >>> from ignite_prune import allocation
    >>> [round(d, 5) for d in allocation.ERK().densities([(300, 784), (100, 300), (10, 100)], density=0.1)]
    [0.07957, 0.23019, 1.0]
"""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.allocation.base import Allocation, Layer, Pool
    from ignite_prune.allocation.bucket import Bucket
    from ignite_prune.allocation.erk import ERK
    from ignite_prune.allocation.global_ import Global
    from ignite_prune.allocation.isomorphic import Isomorphic
    from ignite_prune.allocation.lamp import LAMP
    from ignite_prune.allocation.owl import OWL
    from ignite_prune.allocation.std_threshold import StdThreshold
    from ignite_prune.allocation.uniform import Uniform

__all__ = [
    "ERK",
    "LAMP",
    "OWL",
    "Allocation",
    "Bucket",
    "Global",
    "Isomorphic",
    "Layer",
    "Pool",
    "StdThreshold",
    "Uniform",
]

_FILES = {
    "Allocation": "base",
    "Layer": "base",
    "Pool": "base",
    "Bucket": "bucket",
    "ERK": "erk",
    "Global": "global_",
    "Isomorphic": "isomorphic",
    "LAMP": "lamp",
    "OWL": "owl",
    "StdThreshold": "std_threshold",
    "Uniform": "uniform",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
