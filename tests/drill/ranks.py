"""Ranks that raise or are killed: the other one raises within seconds, and has changed nothing."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import time
import warnings
from typing import Any, ClassVar

import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, schedule
from ignite_prune.handlers import SET, RigL
from tests.catalogue import SALIENCIES, net_for, options_for
from tests.drill.outcome import Outcome
from tests.models import batches, small_net
from tests.ranks import Ranks

PATIENCE = 30  # seconds
KINDS = [row.name for row in SALIENCIES if not row.notes.get("units")]


class Raises(schedule.Linear):
    """A schedule that raises from some moment on; it is told from others by its class alone."""

    now: ClassVar[bool] = False

    def __call__(self, step: float) -> float:
        if Raises.now:
            raise ZeroDivisionError("the schedule's own")
        return super().__call__(step)

    def __repr__(self) -> str:
        return super().__repr__().replace("Raises", "Linear")


def train(rank: int, row: str, way: str, at: int) -> Any:
    """Train on two ranks, of which the second fails at an iteration; return what the first has seen."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    dynamic = {"set": SET, "rigl": RigL}.get(row)
    piece = next((each for each in SALIENCIES if each.name == row), None)
    model = small_net() if piece is None else net_for(piece)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    if dynamic is not None:
        handler: Any = dynamic(model, optimizer, sparsity=0.5, every=1, end=99)
        handler.attach(trainer)
    else:
        assert piece is not None
        settings = options_for(piece, model, calibrated=False)
        course = (
            Raises(0.75, begin=0, end=8) if rank == 1 and way == "raises" else schedule.Linear(0.75, begin=0, end=8)
        )
        handler = PruneHandler(model, optimizer, schedule=course, **settings)
        handler.attach(trainer, Events.ITERATION_COMPLETED)

    seen: dict[str, Any] = {}

    @trainer.on(Events.ITERATION_STARTED)
    def fail(engine: Any) -> None:
        seen["masks"] = {name: mask.clone() for name, mask in handler.masks.items()}
        if rank == 1 and engine.state.iteration == at:
            if way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if way == "raises":
                Raises.now = True
                with torch.no_grad():  # which dynamic training reads at its update
                    next(iter(handler.masks.parameters.values())).fill_(float("nan"))
            if way == "replaced":
                model[7] = nn.Linear(16, 5)

    began = time.monotonic()
    try:
        trainer.run(batches(5, seed=rank), max_epochs=2)
    except Exception as error:
        same = all(torch.equal(mask, seen["masks"][name]) for name, mask in handler.masks.items())
        return type(error).__name__, f"{error!s:.300}", same, time.monotonic() - began
    return "finished", "", True, time.monotonic() - began


train.alone = True  # type: ignore[attr-defined]  # no barrier at its end: one rank is gone


def ranks(seed: int) -> Outcome:
    dice, outcome = random.Random(f"ranks {seed}"), Outcome(runs=1)
    row, way, at = (
        dice.choice([*KINDS, "set", "rigl"]),
        dice.choice(["killed", "raises", "replaced"]),
        dice.randint(2, 9),
    )
    told, pair = f"{row} is {way} at iteration {at} on rank 1", Ranks(multiprocessing.get_context("fork"))
    try:
        kind, text, same, _ = pair.answer_of(0, train, (row, way, at), PATIENCE)
    except TimeoutError:
        outcome.hangs += 1
        outcome.failures.append(f"{told}: rank 0 has not answered in {PATIENCE} s")
        return outcome
    finally:
        pair.kill()
    if not same:
        outcome.has_changed(f"{told}: rank 0 has changed its masks though it raised {kind}: {text}")
    elif way != "killed" and kind not in ("ValueError", "NonFiniteSaliency"):
        outcome.raised(f"{told}: rank 0 {kind}: {text}")
    elif way == "killed" and kind == "finished":
        outcome.differs(f"{told}: rank 0 went on alone")
    return outcome
