"""Latency of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ignite_prune._utils.arguments import check_positive
from ignite_prune._utils.table import shown_seconds
from ignite_prune.core.selection import unwrap
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.structure.model_io import as_arguments, checked_device
from ignite_prune.structure.slicing.compare import run


@dataclass(frozen=True)
class Timing:
    """A measured latency.

    Attributes:
        seconds: median time of a call.
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
        taken = f"{shown_seconds(self.seconds)} ± {shown_seconds(self.spread)}"
        return f"{taken} ({self.calls} calls, {threads}, {self.device}{memory})"


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
