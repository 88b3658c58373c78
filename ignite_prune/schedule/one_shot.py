"""OneShot: a single jump."""

from __future__ import annotations

from dataclasses import dataclass

from ignite_prune.schedule.base import Schedule, check_sparsity, check_steps


@dataclass(frozen=True)
class OneShot(Schedule):
    """0 before step ``at``, ``sparsity`` from it on.

    Example:
        >>> OneShot(0.8, at=2).values(4)
        [0.0, 0.0, 0.8, 0.8]
    """

    sparsity: float
    at: float

    def __post_init__(self) -> None:
        check_sparsity("sparsity", self.sparsity)
        check_steps(at=self.at)

    @property
    def horizon(self) -> float:
        return self.at

    def __call__(self, step: float) -> float:
        return float(self.sparsity) if step >= self.at else 0.0
