"""Time to rewind 25 M weights, in copies of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.optim import SGD, Adam, Optimizer

from clock import Contestant, race
from ignite_prune import PruneHandler, Rewind
from ignite_prune.allocation import Uniform
from ignite_prune.handlers.lottery.snapshot import Snapshot
from nets import MATRICES, Stack
from rows import Row, Settings, ratio_row


def _rewinding(stack: Stack, make: Callable[..., Optimizer], rewind: Rewind) -> Callable[[], None]:
    """Return a function that rewinds a model at 90 % sparsity and its optimizer state, as after a round of training."""
    model = stack.model
    optimizer = make(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    snapshot = Snapshot(rewind, model, optimizer)
    snapshot.take()
    pruner = PruneHandler(model, optimizer, allocation=Uniform())
    pruner.step(0.9)
    return partial(snapshot.restore, pruner.masks)


def rewinding(settings: Settings) -> Iterator[Row]:
    stacks = [Stack(MATRICES, settings.device) for _ in range(4)]
    momentum, adam = partial(SGD, lr=0.0, momentum=0.9), partial(Adam, lr=0.0)
    contestants = {
        "copy": Contestant(stacks[0].copy, times=3),
        "weights": Contestant(_rewinding(stacks[1], momentum, Rewind(optimizer=False)), times=3),
        "SGD": Contestant(_rewinding(stacks[2], momentum, Rewind(to=1)), times=3),
        "Adam": Contestant(_rewinding(stacks[3], adam, Rewind(to=1)), times=3),
    }
    times = race(contestants, settings.rounds, settings.device)
    what = "rewinding 25 M weights at 90 %, momentum too"
    yield ratio_row(what, times.ratios("SGD", "copy"), "copies", at_most=4)
    yield ratio_row("  the weights alone", times.ratios("weights", "copy"), "copies", at_most=4)
    yield ratio_row("  Adam's two moments too", times.ratios("Adam", "copy"), "copies")
