"""Alternating dense and sparse phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ignite_prune.schedule.base import Ramp, check_steps


@dataclass(frozen=True)
class DenseSparse(Ramp):
    """AC/DC: dense warm-up, then sparse and dense phases in turn, ending sparse.

    Up to ``begin`` it is ``initial``; then ``sparse`` steps of ``final``, ``dense`` steps of ``initial`` and so on;
    from ``end`` on it is ``final``. In a dense phase the masks are lifted and the pruned weights train again (from 0,
    or from their old values with ``keep_dense=True``); at each sparse phase they are chosen anew. Masks
    that were given at the start are lifted with the others.

    Args:
        final: sparsity of the sparse phases and at the end.
        begin: last step of the dense warm-up.
        end: first step of the final sparse phase.
        initial: sparsity of the dense phases.
        sparse: steps a sparse phase, at least 1.
        dense: steps a dense phase, at least 1.

    Raises:
        TypeError: an argument is not a number.
        ValueError: a sparsity outside [0, 1], ``initial > final``, ``begin > end``, a phase shorter than 1 step.

    Example:
        >>> DenseSparse(0.9, begin=1, end=8, sparse=2, dense=3).values(9)
        [0.0, 0.0, 0.9, 0.9, 0.0, 0.0, 0.0, 0.9, 0.9]

    References:
        Peste, Iofinova, Vladu, Alistarh, "AC/DC", 2021, arXiv 2106.12379.
    """

    sparse: int = 1
    dense: int = 1
    regrows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(sparse=self.sparse)
        check_steps(dense=self.dense)
        if min(self.sparse, self.dense) < 1:
            raise ValueError(f"A phase should last at least 1 step, but given sparse={self.sparse}, dense={self.dense}")

    def _inside(self, step: float) -> float:
        phase = (step - self.begin - 1) % (self.sparse + self.dense)
        return float(self.final if phase < self.sparse else self.initial)
