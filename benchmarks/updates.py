"""Time of a mask update, in copies of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch.nn.utils import prune

from clock import Contestant, race
from ignite_prune import PruneHandler, allocation, pattern
from nets import MATRICES, Stack
from rows import Row, Settings, ratio_row

SPARSITY = 0.9


class Update:
    """One mask update of a stack that is dense or already pruned to ``earlier``.

    Args:
        stack: the weights.
        earlier: sparsity before the update.
        target: sparsity after the update.
        trained: whether gradients and momentum exist and are masked together with the weights.
        settings: keyword arguments of the pruner.
    """

    def __init__(
        self,
        stack: Stack,
        earlier: float | None = None,
        target: float = SPARSITY,
        trained: bool = False,
        **settings: Any,
    ) -> None:
        self._stack, self._earlier, self._target, self._settings = stack, earlier, target, settings
        self._trained = trained
        self.pruner: PruneHandler | None = None

    def before(self) -> None:
        if self.pruner is not None:
            self.pruner.detach()
        self._stack.copy()
        # Several updates take turns on one stack.
        self.pruner = PruneHandler(self._stack.model, self._optimizer(), shared=True, **self._settings)
        if self._earlier is not None:
            self.pruner.step(self._earlier)

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self._stack.model.parameters(), lr=0.0, momentum=0.9)
        for layer in self._stack.layers:
            layer.weight.grad = torch.ones_like(layer.weight) if self._trained else None
        optimizer.step()
        return optimizer

    def work(self) -> None:
        self.pruner.step(self._target)

    def count(self) -> str:
        """Return a note on whether the count is exact and pruned weights are 0."""
        total = self._stack.numel
        wanted = total - round(total * self._target)
        kept = sum(int(mask.count_nonzero()) for mask in self.pruner.masks.values())
        alive = sum(int(layer.weight.count_nonzero()) for layer in self._stack.layers)
        return f"{kept:,} kept, exact" if kept == alive == wanted else f"KEPT {kept}, NON-ZERO {alive}, WANTED {wanted}"

    def contestant(self) -> Contestant:
        return Contestant(self.work, self.before)


def update(settings: Settings) -> Iterator[Row]:
    stack = Stack(MATRICES, settings.device)
    first, later = Update(stack), Update(stack, earlier=0.8)
    times = race(
        {
            "copy": Contestant(stack.copy, times=5),
            "first": first.contestant(),
            "later": later.contestant(),
        },
        settings.rounds,
        settings.device,
    )
    note = later.count()
    what = "mask update, 25 M float32, dense → 90 %"
    yield ratio_row(what, times.ratios("first", "copy"), "copies", at_most=20)
    what = "mask update, 25 M float32, 80 % → 90 %"
    yield ratio_row(what, times.ratios("later", "copy"), "copies", note, at_most=20)


def peer(settings: Settings) -> Iterator[Row]:
    stack, theirs = Stack(MATRICES, settings.device), Stack(MATRICES, settings.device)  # torch renames its weights
    ours = Update(stack)
    modules = [(layer, "weight") for layer in theirs.layers]

    def with_torch() -> None:
        prune.global_unstructured(modules, prune.L1Unstructured, amount=SPARSITY)

    def plain_again() -> None:
        for layer, name in modules:
            if prune.is_pruned(layer):
                prune.remove(layer, name)
        theirs.copy()

    contestants = {
        "copy": Contestant(stack.copy, times=5),
        "ours": ours.contestant(),
        "torch": Contestant(with_torch, plain_again),
        "numpy": Contestant(lambda: _by_partition(theirs), plain_again),
    }
    rounds = 1 if settings.rounds < 5 else 2
    times = race({name: contestants[name] for name in ("copy", "ours")}, 1, settings.device)  # warm
    times = race(contestants, rounds, settings.device, warm_up=0)
    copies = f"torch takes {times.median('torch') / times.median('copy'):.0f} copies"
    what = "  speed-up over torch's global_unstructured, dense → 90 %"
    yield ratio_row(what, times.ratios("torch", "ours"), "×", copies, at_least=40)
    copies = f"numpy.partition takes {times.median('numpy') / times.median('copy'):.0f} copies"
    yield ratio_row("  speed-up over a plain program with numpy.partition", times.ratios("numpy", "ours"), "×", copies)


def _by_partition(stack: Stack) -> None:
    """Prune globally as a plain program does, without ties: partition all magnitudes, compare, multiply."""
    weights = [layer.weight.detach().cpu().float().numpy() for layer in stack.layers]
    magnitudes = numpy.concatenate([abs(weight).ravel() for weight in weights])
    pruned = round(len(magnitudes) * SPARSITY)
    threshold = numpy.partition(magnitudes, pruned)[pruned]
    with torch.no_grad():
        for layer, weight in zip(stack.layers, weights):
            mask = torch.from_numpy(abs(weight) >= threshold)
            layer.weight.mul_(mask.to(layer.weight.device))


def dtypes(settings: Settings) -> Iterator[Row]:
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    updates = {str(kind): Update(Stack(MATRICES, settings.device, kind)) for kind in kinds}
    contestants = {name: each.contestant() for name, each in updates.items()}
    times = race(contestants, settings.rounds, settings.device)
    for kind in kinds[1:]:
        name = str(kind).removeprefix("torch.")
        ratios = times.ratios(str(kind), str(torch.float32))
        yield ratio_row(f"update in {name} against float32", ratios, "×", updates[str(kind)].count(), at_most=2)


def scale(settings: Settings) -> Iterator[Row]:
    small, large = Stack(MATRICES, settings.device), Stack(10 * MATRICES, settings.device)
    contestants = {"small": Update(small).contestant(), "large": Update(large).contestant()}
    times = race(contestants, max(3, settings.rounds // 2), settings.device)
    ratios = [ratio * small.numel / large.numel for ratio in times.ratios("large", "small")]
    yield ratio_row("update, time per parameter, 250 M against 25 M", ratios, "×", at_most=1.3)


def billion(settings: Settings) -> Iterator[Row]:
    stack = Stack(960, settings.device)
    ours = Update(stack)
    contestants = {"copy": Contestant(stack.copy), "ours": ours.contestant()}
    times = race(contestants, 2, settings.device, warm_up=0)
    yield Row("update of 1 billion float32 parameters", times.median("ours"), "s", note=ours.count())
    yield ratio_row("  the same in copies of these weights", times.ratios("ours", "copy"), "copies")


def others(settings: Settings) -> Iterator[Row]:
    stack = Stack(MATRICES, settings.device)
    updates = {
        "update to 90 %, allocation Uniform()": Update(stack, allocation=allocation.Uniform()),
        "update to 90 %, allocation LAMP()": Update(stack, allocation=allocation.LAMP()),
        "update to 50 %, pattern NofM(2, 4)": Update(stack, target=0.5, pattern=pattern.NofM(2, 4)),
        "update to 90 %, pattern Block((4, 1))": Update(stack, pattern=pattern.Block((4, 1))),
        "update to 90 %, pattern Channel()": Update(stack, pattern=pattern.Channel()),
        "update to 90 % with gradients and momentum to mask": Update(stack, trained=True),
        "update that changes nothing": Update(stack, earlier=SPARSITY),
    }
    contestants = {name: each.contestant() for name, each in updates.items()}
    times = race(
        {"copy": Contestant(stack.copy, times=5), **contestants}, max(3, settings.rounds // 2), settings.device
    )
    for name in updates:
        yield ratio_row(name, times.ratios(name, "copy"), "copies")
    yield from _state(settings, stack)


def _state(settings: Settings, stack: Stack) -> Iterator[Row]:
    update = Update(stack)
    update.before()
    update.work()
    pruner, state = update.pruner, update.pruner.state_dict()
    contestants = {
        "copy": Contestant(stack.copy, times=5),
        "pruner.state_dict()": Contestant(pruner.state_dict),
        "pruner.load_state_dict()": Contestant(lambda: pruner.load_state_dict(state)),
    }
    times = race(contestants, settings.rounds, settings.device)
    for name in list(contestants)[1:]:
        yield ratio_row(name, times.ratios(name, "copy"), "copies")
