"""Dynamic sparse training against a static mask: what an update costs, spread over the iterations up to the next."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from ignite.engine import create_supervised_trainer
from torch import Tensor, nn

from clock import Contestant, race
from ignite_prune.handlers import SET, DynamicSparse, RigL, SparseMomentum
from nets import MATRICES, Stack, resnet18
from rows import Row, Settings, ratio_row

EVERY, ROUNDS = 100, 5


def _iterations(model: nn.Module, inputs: Tensor, kind: type[DynamicSparse], **options: int) -> Callable[[], object]:
    """Return 100 iterations of a trainer, the last with an update of ``kind``; the masks begin as everybody's."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, lambda output, _: output.square().mean(), inputs.device)
    pruner = kind(model, optimizer, sparsity=0.9, generator=torch.Generator().manual_seed(0), **options)
    pruner.attach(trainer)
    batches = [(inputs, torch.zeros(1, device=inputs.device))] * EVERY
    return lambda: trainer.run(batches, max_epochs=1)


def every_hundred(settings: Settings) -> Iterator[Row]:
    nets = {
        "24 Linear(1024), batch 8": (
            Stack(MATRICES, settings.device, relu=True).model,
            torch.randn(8, 1024, device=settings.device),
        ),
        "ResNet-18, ImageNet's stem, 32 images 3×32×32": (
            resnet18(imagenet_stem=True).to(settings.device),
            torch.randn(32, 3, 32, 32, device=settings.device),
        ),
    }
    for name, (model, inputs) in nets.items():
        contestants = {
            "static": Contestant(_iterations(model, inputs, SET, end=1)),
            "RigL": Contestant(_iterations(model, inputs, RigL, every=EVERY, end=10 * EVERY)),
            "SET": Contestant(_iterations(model, inputs, SET, every=EVERY, end=10 * EVERY)),
            "momentum": Contestant(_iterations(model, inputs, SparseMomentum, every=EVERY, end=10 * EVERY)),
        }
        times = race(contestants, min(settings.rounds, ROUNDS), settings.device)
        what = f"RigL every 100 iterations against a static mask, {name}"
        yield ratio_row(what, times.ratios("RigL", "static"), "×", at_most=1.05)
        yield ratio_row("  SET", times.ratios("SET", "static"), "×")
        yield ratio_row("  sparse momentum", times.ratios("momentum", "static"), "×")
