"""Interleaved timing of several calls, for fair comparisons on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ignite_prune._utils.arguments import check_positive


def interleaved(
    calls: Sequence[Callable[[], Any]],
    *,
    rounds: int = 7,
    seconds: float = 0.002,
    prepare: Sequence[Callable[[], Any]] | None = None,
) -> list[float]:
    """Return the seconds of each of several calls: the smallest mean of ``rounds``, in which they take turns.

    On a machine that is busy, measurements one after the other compare its load; in turns, each call meets the same.

    Args:
        calls: without arguments.
        rounds: how often each call is measured.
        seconds: how long a call is repeated in each round, at least once.
        prepare: for each call, what is done before each of its rounds and not measured.

    Raises:
        ValueError: an argument is not above 0.

    Example:
        >>> few, many = interleaved([lambda: sum(range(100)), lambda: sum(range(10000))], seconds=1e-4)
        >>> few < many
        True
    """
    check_positive("rounds", rounds, whole=True)
    check_positive("seconds", seconds)
    repeats = []
    before = prepare or [_wait] * len(calls)
    for call, ready in zip(calls, before):
        ready()
        call()
        repeats.append(max(1, int(seconds / max(_mean(call, 1), 1e-9))))
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for each, call in enumerate(calls):
            before[each]()
            best[each] = min(best[each], _mean(call, repeats[each]))
    return best


def _mean(call: Callable[[], Any], repeats: int) -> float:
    _wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait()
    return (time.perf_counter() - start) / repeats


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
