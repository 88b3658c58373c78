"""Schedules: step → sparsity, pure functions of the step, counted in the attached event's own unit.

Example:
    >>> from ignite_prune import schedule
    >>> [round(s, 4) for s in schedule.Polynomial(final=0.9, begin=0, end=4).values(5)]
    [0.0, 0.5203, 0.7875, 0.8859, 0.9]
"""

from typing import TYPE_CHECKING

from ignite_prune.lazy import importer

if TYPE_CHECKING:
    from ignite_prune.schedule.base import Ramp, Schedule
    from ignite_prune.schedule.constant import Constant, OneShot, Steps
    from ignite_prune.schedule.dense_sparse import DenseSparse
    from ignite_prune.schedule.exponential import Exponential, Geometric
    from ignite_prune.schedule.polynomial import Linear, Polynomial
    from ignite_prune.schedule.sigmoid import Cosine, OneCycle

__all__ = [
    "Constant",
    "Cosine",
    "DenseSparse",
    "Exponential",
    "Geometric",
    "Linear",
    "OneCycle",
    "OneShot",
    "Polynomial",
    "Ramp",
    "Schedule",
    "Steps",
]

_FILES = {
    "Ramp": "base",
    "Schedule": "base",
    "Constant": "constant",
    "OneShot": "constant",
    "Steps": "constant",
    "DenseSparse": "dense_sparse",
    "Exponential": "exponential",
    "Geometric": "exponential",
    "Linear": "polynomial",
    "Polynomial": "polynomial",
    "Cosine": "sigmoid",
    "OneCycle": "sigmoid",
}
__getattr__ = importer(__name__, _FILES)
