"""Training steps (forward, backward, optimizer), pruned compared with dense."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, prune

from clock import Contestant, race
from ignite_prune import PruneHandler
from ignite_prune.allocation import Uniform
from nets import MATRICES, Stack, resnet18
from rows import Row, Settings, ratio_row

Step = Callable[[], None]


def _step(model: nn.Module, inputs: Tensor, pruned: bool = False, clip: bool = False) -> Step:
    """Return one training step of a copy of the model; the first call creates the optimizer state."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    if pruned:
        # Uniform, because initial weights have a different scale in each layer; the time of a step is the same.
        PruneHandler(model, optimizer, allocation=Uniform()).step(0.9)
    return _training(model, optimizer, inputs, clip)


def _step_with_torch(model: nn.Module, inputs: Tensor, clip: bool = False) -> Step:
    """Return the same step with torch's pruning hooks and the masks that this package computes."""
    model, ours = copy.deepcopy(model), copy.deepcopy(model)
    pruner = PruneHandler(ours, allocation=Uniform())
    pruner.step(0.9)
    modules = dict(model.named_modules())
    for name, mask in pruner.masks.items():
        prune.custom_from_mask(modules[name.removesuffix(".weight")], "weight", mask)
    return _training(model, torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9), inputs, clip)


def _training(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, clip: bool) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        if clip:
            clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def stack_step(settings: Settings) -> Iterator[Row]:
    model = Stack(MATRICES, settings.device, relu=True).model
    inputs = torch.randn(8, 1024, device=settings.device)
    contestants = {
        "dense": Contestant(_step(model, inputs), times=3),
        "ours": Contestant(_step(model, inputs, pruned=True), times=3),
        "dense, clipped": Contestant(_step(model, inputs, clip=True), times=3),
        "ours, clipped": Contestant(_step(model, inputs, pruned=True, clip=True), times=3),
        "torch": Contestant(_step_with_torch(model, inputs), times=2),
    }
    times = race(contestants, settings.rounds, settings.device)
    what = "training step, 24 Linear(1024), batch 8, against dense"
    yield ratio_row(what, times.ratios("ours", "dense"), "×", at_most=1.35)
    yield ratio_row("  with clip_grad_norm_", times.ratios("ours, clipped", "dense, clipped"), "×")
    yield ratio_row("  under torch.nn.utils.prune's hooks", times.ratios("torch", "dense"), "×")


def resnet_step(settings: Settings) -> Iterator[Row]:
    inputs = torch.randn(32, 3, 32, 32, device=settings.device)
    for imagenet_stem in (False, True):
        model = resnet18(imagenet_stem).to(settings.device)
        often = 4 if imagenet_stem else 1
        contestants = {
            "dense": Contestant(_step(model, inputs), times=often),
            "ours": Contestant(_step(model, inputs, pruned=True), times=often),
        }
        times = race(contestants, settings.rounds, settings.device)
        what = (
            "  with ImageNet's stem (1/16 of the work)"
            if imagenet_stem
            else "training step, ResNet-18, 32 images 3×32×32"
        )
        target = {} if imagenet_stem else {"at_most": 1.05}
        yield ratio_row(what, times.ratios("ours", "dense"), "×", **target)
