"""Drop-and-grow rules of dynamic sparse training (SET, RigL, SRigL, sparse momentum), with exact counts.

They are pure functions of weights, masks and evidence; ``ignite_prune.handlers`` applies them to a model in training.
"""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.regrow.base import Connections, Move, Rewired, drop_smallest, grow_best
    from ignite_prune.regrow.fan_in import ConstantFanIn
    from ignite_prune.regrow.fraction import ConstantDrop, CosineDrop, DropFraction
    from ignite_prune.regrow.growth import ByGradient, ByMomentum, Growth, Random
    from ignite_prune.regrow.per_layer import PerLayer
    from ignite_prune.regrow.redistribute import Redistribute

__all__ = [
    "ByGradient",
    "ByMomentum",
    "Connections",
    "ConstantDrop",
    "ConstantFanIn",
    "CosineDrop",
    "DropFraction",
    "Growth",
    "Move",
    "PerLayer",
    "Random",
    "Redistribute",
    "Rewired",
    "drop_smallest",
    "grow_best",
]

_FILES = {
    "ByGradient": "growth",
    "ByMomentum": "growth",
    "Connections": "base",
    "ConstantDrop": "fraction",
    "ConstantFanIn": "fan_in",
    "CosineDrop": "fraction",
    "DropFraction": "fraction",
    "Growth": "growth",
    "Move": "base",
    "PerLayer": "per_layer",
    "Random": "growth",
    "Redistribute": "redistribute",
    "Rewired": "base",
    "drop_smallest": "base",
    "grow_best": "base",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
