"""Sparsity schedules: pure functions from a step to a sparsity.

Steps are counted in the unit of the attached event: epochs for ``EPOCH_*``, iterations for ``ITERATION_*``.

Example:
    >>> from ignite_prune import schedule
    >>> [round(s, 4) for s in schedule.Polynomial(final=0.9, begin=0, end=4).values(5)]
    [0.0, 0.5203, 0.7875, 0.8859, 0.9]
"""

from typing import TYPE_CHECKING

from ignite_prune._utils.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.schedule.base import Ramp, Schedule
    from ignite_prune.schedule.constant import Constant
    from ignite_prune.schedule.cosine import Cosine
    from ignite_prune.schedule.dense_sparse import DenseSparse
    from ignite_prune.schedule.exponential import Exponential
    from ignite_prune.schedule.geometric import Geometric
    from ignite_prune.schedule.held import Held
    from ignite_prune.schedule.in_epochs import InEpochs
    from ignite_prune.schedule.linear import Linear
    from ignite_prune.schedule.one_cycle import OneCycle
    from ignite_prune.schedule.one_shot import OneShot
    from ignite_prune.schedule.polynomial import Polynomial
    from ignite_prune.schedule.power import Power
    from ignite_prune.schedule.quarter_cosine import QuarterCosine
    from ignite_prune.schedule.steps import Steps

__all__ = [
    "Constant",
    "Cosine",
    "DenseSparse",
    "Exponential",
    "Geometric",
    "Held",
    "InEpochs",
    "Linear",
    "OneCycle",
    "OneShot",
    "Polynomial",
    "Power",
    "QuarterCosine",
    "Ramp",
    "Schedule",
    "Steps",
]

_FILES = {
    "Ramp": "base",
    "Schedule": "base",
    "Constant": "constant",
    "OneShot": "one_shot",
    "Steps": "steps",
    "DenseSparse": "dense_sparse",
    "Exponential": "exponential",
    "Geometric": "geometric",
    "Linear": "linear",
    "Polynomial": "polynomial",
    "Cosine": "cosine",
    "OneCycle": "one_cycle",
    "Held": "held",
    "InEpochs": "in_epochs",
    "Power": "power",
    "QuarterCosine": "quarter_cosine",
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = importer(__name__, _FILES)
