"""Cost of dynamic sparse training compared with a static mask, averaged over the iterations between two updates."""

from __future__ import annotations

import copy
import ctypes
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from ignite.engine import create_supervised_trainer
from torch import Tensor, nn

from clock import Contestant, race
from ignite_prune.handlers import SET, SRSTE, DynamicSparse, LearntSparsity, RigL, SparseMomentum, TopKAST
from nets import Stack, resnet18
from rows import Row, Settings, ratio_row

EVERY, ROUNDS, MATRICES = 100, 5, 8


def _iterations(model: nn.Module, inputs: Tensor, kind: type[DynamicSparse], **options: int) -> Callable[[], object]:
    """Return 100 iterations of a trainer, the last with an update of ``kind``; all kinds start from the same masks."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, lambda output, _: output.square().mean(), inputs.device)
    pruner = kind(model, optimizer, sparsity=0.9, generator=torch.Generator().manual_seed(0), **options)
    pruner.attach(trainer)
    batches = [(inputs, torch.zeros(1, device=inputs.device))] * EVERY
    return lambda: trainer.run(batches, max_epochs=1)


def _keep_freed_memory() -> None:
    """Configure glibc to keep the memory of freed gradients instead of returning it to the system page by page.

    Whether it returns memory depends on the layout of the heap; the same step then took 0.8 to 1.4 times as long.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for option, size in ((-3, 32 << 20), (-1, 1 << 30)) if mallopt else ():  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(option, size)


def every_hundred(settings: Settings) -> Iterator[Row]:
    _keep_freed_memory()
    options = {"every": EVERY, "end": 10 * EVERY}
    stack = Stack(MATRICES, settings.device, relu=True).model, torch.randn(8, 1024, device=settings.device)
    resnet = resnet18(imagenet_stem=True).to(settings.device), torch.randn(32, 3, 32, 32, device=settings.device)
    for name, net, others in (
        ("8 Linear(1024), batch 8", stack, {"  SET": SET, "  sparse momentum": SparseMomentum}),
        ("ResNet-18, ImageNet's stem, 32 images 3×32×32", resnet, {}),
    ):
        kinds: dict[str, type[DynamicSparse]] = {
            f"RigL every 100 iterations against a static mask, {name}": RigL,
            **others,
        }
        contestants = {what: Contestant(_iterations(*net, kind, **options)) for what, kind in kinds.items()}
        contestants["static"] = Contestant(_iterations(*net, SET, end=1))
        times = race(contestants, min(settings.rounds, ROUNDS), settings.device)
        for what, kind in kinds.items():
            target = {"at_most": 1.05} if kind is RigL else {}
            yield ratio_row(what, times.ratios(what, "static"), "×", **target)


def _trainer(handler: Callable[[nn.Module, torch.optim.Optimizer], Any], device: torch.device) -> Callable[[], object]:
    """Return ten iterations of a trainer of four Linear(1024) at batch 8, to which a handler is attached."""
    model = Stack(4, device, relu=True).model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, lambda output, _: output.square().mean(), device)
    handler(model, optimizer).attach(trainer)
    batches = [(torch.randn(8, 1024, device=device), torch.zeros(1, device=device))] * 10
    return lambda: trainer.run(batches, max_epochs=1)


def every_step(settings: Settings) -> Iterator[Row]:
    """Compare handlers that work in every step with a static mask."""
    warnings.simplefilter("ignore")  # of runs that are too short for an update
    kinds: dict[str, tuple[float, Callable[[nn.Module, torch.optim.Optimizer], Any]]] = {
        "Top-KAST": (1.6, lambda model, optimizer: TopKAST(model, optimizer, sparsity=0.9)),
        "SR-STE 2:4": (2.5, SRSTE),
        "learnt thresholds": (1.6, lambda model, optimizer: LearntSparsity(model, strength=1e-4)),
    }
    contestants = {name: Contestant(_trainer(kind, settings.device)) for name, (_, kind) in kinds.items()}
    contestants["static"] = Contestant(_trainer(lambda *given: SET(*given, sparsity=0.9, end=1), settings.device))
    times = race(contestants, settings.rounds, settings.device)
    for name, (most, _) in kinds.items():
        yield ratio_row(
            f"step of {name} against a static mask's, 4 Linear(1024), batch 8",
            times.ratios(name, "static"),
            "×",
            at_most=most,
        )
