"""Constant: the same sparsity at every step."""

from __future__ import annotations

from dataclasses import dataclass

from ignite_prune.schedule.base import Schedule, check_sparsity


@dataclass(frozen=True)
class Constant(Schedule):
    """The same sparsity at every step.

    Example:
        >>> Constant(0.5).values(2)
        [0.5, 0.5]
    """

    sparsity: float

    def __post_init__(self) -> None:
        check_sparsity("sparsity", self.sparsity)

    @property
    def horizon(self) -> float:
        return 0

    def __call__(self, step: float) -> float:
        return float(self.sparsity)
