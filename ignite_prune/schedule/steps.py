"""Steps: a table of steps and sparsities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ignite_prune.schedule.base import Schedule, check_sparsity, check_steps


@dataclass(frozen=True)
class Steps(Schedule):
    """A table: each sparsity holds from its step until the next; before the first step the sparsity is 0.

    Args:
        table: ``{step: sparsity}``, not empty, with sparsities that never decrease.

    Example:
        >>> Steps({1: 0.5, 3: 0.75}).values(5)
        [0.0, 0.5, 0.5, 0.75, 0.75]
    """

    table: Mapping[float, float]

    def __post_init__(self) -> None:
        if not isinstance(self.table, Mapping) or not self.table:
            raise TypeError(f"Argument table should be a mapping {{step: sparsity}}, but given {self.table!r}")
        for step, sparsity in self.table.items():
            check_steps(step=step)
            check_sparsity(f"table[{step}]", sparsity)
        rising = [self.table[step] for step in sorted(self.table)]
        if rising != sorted(rising):
            raise ValueError(f"Argument table should never fall, as masks only grow sparser, but given {self.table}")

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.table.items())))

    @property
    def horizon(self) -> float:
        return max(self.table)

    def __call__(self, step: float) -> float:
        return float(max((self.table[at] for at in self.table if at <= step), default=0.0))
