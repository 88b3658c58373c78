"""Time that a regulariser adds to an optimizer step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from ignite.engine import Engine

from clock import Contestant, race
from ignite_prune import pattern, structure
from ignite_prune.handlers import GroupLasso
from nets import MATRICES, Stack
from rows import Row, Settings, ratio_row

SHAPES = {
    "rows": pattern.Channel(),
    "columns": pattern.Channel(dim=1),
    "blocks of 4×1": pattern.Block((4, 1)),
    "blocks of 1×16": pattern.Block((1, 16)),
    "blocks of 4×4": pattern.Block((4, 4)),
}


class _Idle(torch.optim.SGD):
    """An optimizer whose step does nothing, so that only its hooks are timed."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        pass


def _step(stack: Stack, **options: object) -> Contestant:
    optimizer = _Idle(stack.model.parameters(), lr=1e-6)
    lasso = GroupLasso(stack.model, strength=1e-3, optimizer=optimizer, **options)  # type: ignore[arg-type]
    lasso.attach(Engine(lambda engine, batch: None))
    return Contestant(optimizer.step, times=3)


def group_lasso(settings: Settings) -> Iterator[Row]:
    stack = Stack(MATRICES, settings.device, relu=True)
    for layer in stack.layers:
        layer.weight.grad = torch.randn_like(layer.weight)
    traced = structure.trace(stack.model, torch.zeros(1, stack.layers[0].in_features, device=settings.device))
    contestants = {"copy": Contestant(stack.copy, times=3)}
    for form in (True, False):
        for name, shape in SHAPES.items():
            contestants[f"{name}, {form}"] = _step(stack, pattern=shape, proximal=form)
        contestants[f"coupled units, {form}"] = _step(stack, structure=traced, proximal=form)
    times = race(contestants, settings.rounds, settings.device)
    what = "group-lasso step, 25 M weights"
    for key in contestants:
        if key != "copy":
            name, _, form = key.partition(", ")
            kind = "proximal" if form == "True" else "gradient"
            yield ratio_row(f"{what}: {kind}, {name}", times.ratios(key, "copy"), "copies", at_most=4)
