"""Latency of a forward pass, and fair comparisons of several calls on a machine that is busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ignite_prune._utils.arguments import check_positive
from ignite_prune.core.selection import unwrap
from ignite_prune.evidence.calibration import undisturbed
from ignite_prune.measure.table import shown_seconds
from ignite_prune.structure.model_io import as_arguments, tensors_of
from ignite_prune.structure.slicing.compare import run


@dataclass(frozen=True)
class Timing:
    """A measured latency.

    Attributes:
        seconds: median of a call.
        spread: interquartile range, in seconds.
        calls: number of calls that were measured.
        threads: of torch, during the measurement.
        device: of the inputs, or of the model without tensor inputs.
        peak_bytes: memory that the call allocated at its peak, the weights included; None on the CPU, where PyTorch
            does not count it.
    """

    seconds: float
    spread: float
    calls: int
    threads: int
    device: str
    peak_bytes: int | None

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        memory = "" if self.peak_bytes is None else f", peak {self.peak_bytes / 2**20:.1f} MiB"
        return f"{shown_seconds(self.seconds)} ± {shown_seconds(self.spread)} ({self.calls} calls, {threads}, {self.device}{memory})"


def latency(
    model: nn.Module, inputs: Any, *, min_run_time: float = 0.5, warmup: int = 3, threads: int | None = None
) -> Timing:
    """Measure a model's forward pass in eval mode, without gradients, by ``torch.utils.benchmark.Timer``.

    Modes, buffers and the random state are restored. On a GPU the measurement waits for the device.

    Args:
        model: bare, wrapped or compiled.
        inputs: a tensor, a tuple of arguments, or a dict of keyword arguments, on the model's device.
        min_run_time: seconds to measure for, after the warm-up.
        warmup: calls that are not measured.
        threads: of torch during the measurement; None: as many as are set.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, inputs are on another device, or the forward pass fails.

    Example:
        >>> timing = latency(nn.Linear(4, 4), torch.randn(2, 4), min_run_time=0.01)
        >>> 0 < timing.seconds < 1, timing.device
        (True, 'cpu')
    """
    from torch.utils.benchmark import Timer

    check_positive("min_run_time", min_run_time)
    check_positive("warmup", warmup, whole=True)
    if threads is not None:
        check_positive("threads", threads, whole=True)
    device = checked_device(model, inputs)
    run(unwrap(model), inputs)  # names the layer in which a forward pass fails
    args, kwargs = as_arguments(unwrap(model), inputs)
    threads = threads or torch.get_num_threads()
    with undisturbed(model), torch.no_grad():
        timer = Timer(
            "model(*args, **kwargs)", globals={"model": model, "args": args, "kwargs": kwargs}, num_threads=threads
        )
        timer.timeit(warmup)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        measured = timer.blocked_autorange(min_run_time=min_run_time)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    calls = measured.number_per_run * len(measured.raw_times)
    return Timing(measured.median, measured.iqr, calls, threads, str(device), peak)


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


def checked_device(model: nn.Module, inputs: Any) -> torch.device:
    """Return the device of a model and its inputs.

    Raises:
        ValueError: they are on different devices, or on the meta device.
    """
    held = next((each.device for each in (*model.parameters(), *model.buffers())), None)
    given = next((each.device for each in tensors_of(inputs)), held)
    found = given or torch.device("cpu")
    if held is not None and held != found:
        raise ValueError(f"The model is on {held}, but its inputs are on {found}; move one of them")
    if found.type == "meta":
        raise ValueError("The model is on the meta device and cannot run; call model.to_empty(device='cpu') first")
    return found
