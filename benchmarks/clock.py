"""Alternating timings: the contestants take turns, so that a temporary slowdown of the machine affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def _nothing() -> None:
    pass


@dataclass
class Contestant:
    """The timed function, an untimed setup before each timing, and the number of calls per timing."""

    work: Callable[[], object]
    before: Callable[[], object] = _nothing
    times: int = 1


@dataclass
class Times:
    """Seconds per contestant, one value per round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, base: str) -> list[float]:
        """Return the ratio of ``name``'s time to ``base``'s time for each round."""
        return [ours / theirs for ours, theirs in zip(self.seconds[name], self.seconds[base])]


def race(contestants: dict[str, Contestant], rounds: int, device: torch.device, warm_up: int = 1) -> Times:
    """Time every contestant once per round, for ``rounds`` rounds after a warm-up."""
    times = Times({name: [] for name in contestants})
    for turn in range(warm_up + rounds):
        for name, contestant in contestants.items():
            contestant.before()
            seconds = _timed(contestant.work, contestant.times, device)
            if turn >= warm_up:
                times.seconds[name].append(seconds)
    return times


def _timed(work: Callable[[], object], times: int, device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait_for(device)
    return (time.perf_counter() - start) / times


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
