"""Racing: contestants take turns, so that what slows the machine for a while slows all of them alike."""

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
    """What is timed, what is done untimed before each time, and how often the work is done in one timing."""

    work: Callable[[], object]
    before: Callable[[], object] = _nothing
    times: int = 1


@dataclass
class Times:
    """Seconds by contestant, one a round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, base: str) -> list[float]:
        """Return each round's time of ``name`` against that of ``base`` in the same round."""
        return [ours / theirs for ours, theirs in zip(self.seconds[name], self.seconds[base])]


def race(contestants: dict[str, Contestant], rounds: int, device: torch.device, warm_up: int = 1) -> Times:
    """Time every contestant once a round, ``rounds`` rounds after the warm-up."""
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
