"""DenseSparse: alternating dense and sparse phases (AC/DC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ignite_prune.schedule.base import Ramp, check_steps


@dataclass(frozen=True)
class DenseSparse(Ramp):
    """AC/DC: a dense warm-up, then alternating sparse and dense phases, the last one sparse.

    The value is ``initial`` up to ``begin``, then ``final`` for ``sparse`` steps, ``initial`` for ``dense`` steps and
    so on, and ``final`` from ``end`` on. A dense phase removes the masks, including those given at the start, and the
    pruned weights train again (from 0, or from their old values with ``keep_dense=True``); each sparse phase selects
    new masks.

    Args:
        final: sparsity of the sparse phases and at the end.
        begin: last step of the dense warm-up.
        end: first step of the final sparse phase.
        initial: sparsity of the dense phases.
        sparse: number of steps of a sparse phase, at least 1.
        dense: number of steps of a dense phase, at least 1.

    Raises:
        TypeError: an argument is not a number.
        ValueError: a sparsity is outside [0, 1], ``initial > final``, ``begin > end``, or a phase is shorter than 1.

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
