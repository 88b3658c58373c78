"""``ignite-prune bench``: what pruning costs a training step on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ignite_prune._utils.nested import tensors_in
from ignite_prune.cli.failures import guarded
from ignite_prune.cli.options import Example, Json, Model
from ignite_prune.cli.output import say, show_json, show_table
from ignite_prune.cli.user_code import device_of, inputs_needed, model_and_inputs
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.structure.model_io import as_arguments

Sparsity = Annotated[float, typer.Option("--sparsity", "-s", min=0.0, max=1.0, help="Of the pruned steps.")]
Steps = Annotated[int, typer.Option("--steps", min=3, help="Steps to measure of each kind.")]

_TURNS, _WARM_UP = 3, 3


@guarded
def bench(
    model: Model, example: Example = None, sparsity: Sparsity = 0.9, steps: Steps = 20, as_json: Json = False
) -> None:
    """Measure training steps without and with masks, and one mask update.

    SGD with momentum, the mean of the outputs as the loss. MODULE:CALLABLE and --example import MODULE and run its
    code.
    """
    net, inputs = model_and_inputs(model, example)
    args, kwargs = as_arguments(net, inputs_needed(inputs))
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        outputs = [each for each in tensors_in(net(*args, **kwargs)) if each.is_floating_point()]
        loss: Tensor = torch.stack([each.float().mean() for each in outputs]).sum()
        torch.autograd.backward(loss)
        optimizer.step()

    device, pruner = device_of(net), PruneHandler(net, optimizer)
    began = time.perf_counter()
    pruner.step(sparsity)
    first = time.perf_counter() - began
    say(f"measuring {steps} steps of each kind, in turn")
    dense, masked = _in_turn(step, pruner, sparsity, -(-steps // _TURNS), device)
    again = statistics.median(_seconds(lambda: _update(pruner, sparsity), max(3, steps // 4), device))
    pruner.detach()
    found = {
        "dense_step": dense,
        "masked_step": masked,
        "ratio": masked / dense,
        "update": again,
        "first_update": first,
    }
    if as_json:
        show_json({"model": model, "device": str(device), "threads": torch.get_num_threads(), **found})
        return
    rows = [
        [name.replace("_", " "), f"{value:.3f}" if name == "ratio" else f"{value * 1e3:.2f} ms"]
        for name, value in found.items()
    ]
    show_table(["", f"{device}, {torch.get_num_threads()} threads"], rows)


def _in_turn(
    step: Callable[[], Any], pruner: PruneHandler, sparsity: float, times: int, device: torch.device
) -> tuple[float, float]:
    """Return the median time of a step without and with masks; what else the machine does falls on both."""
    dense, masked = list[float](), list[float]()
    for _ in range(_TURNS):
        pruner.restore()
        pruner.detach()
        dense += _seconds(step, times, device)
        pruner.step(sparsity)
        masked += _seconds(step, times, device)
    return statistics.median(dense), statistics.median(masked)


def _update(pruner: PruneHandler, sparsity: float) -> None:
    pruner.restore()
    pruner.step(sparsity)


def _seconds(run: Callable[[], Any], times: int, device: torch.device) -> list[float]:
    """Return the time of each call, after a few that are not measured."""
    found = []
    for _ in range(times + _WARM_UP):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return found[_WARM_UP:]
