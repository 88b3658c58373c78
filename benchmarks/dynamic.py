"""Cost of dynamic sparse training compared with a static mask, averaged over the iterations between two updates."""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Callable, Iterator

import torch
from ignite.engine import create_supervised_trainer
from torch import Tensor, nn

from clock import Contestant, race
from ignite_prune.handlers import SET, DynamicSparse, RigL, SparseMomentum
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
