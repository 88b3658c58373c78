"""Exact resume in one process: a run's checkpoint of every iteration, loaded into a run that was built again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from ignite.engine import Events

from tests.catalogue.runs import Run, build
from tests.models import assert_same_bits

OTHER_SEED = 5  # of the model that a checkpoint is loaded into
BOTH = ("first", "last")  # before and after the piece, at every moment
ALTERNATING = ("last", "first")  # at even and at odd iterations


def saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def loaded(state: bytes) -> Any:
    return torch.load(io.BytesIO(state), weights_only=True)


class Checkpoints:
    """A state of each moment of a run, those that are equal once.

    With the orders ``ALTERNATING``, a moment of an even iteration is taken after the piece, one of an odd before it.
    """

    def __init__(self, run: Run, moments: tuple[str, ...], orders: tuple[str, ...], every: int = 1) -> None:
        self.run, self.moments, self.every, self.alternating = run, moments, every, orders == ALTERNATING
        self.states: dict[bytes, str] = {}
        self.iterations: list[int] = []
        run.trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: self.iterations.append(engine.state.iteration)
        )
        if "first" in orders:
            self.attach("first")
        run.attach()
        if "last" in orders:
            self.attach("last")

    def attach(self, order: str) -> None:
        for moment in self.moments:
            engine, event = self.run.moments[moment]
            if order == "last" or moment != "masks_updated":  # which is known to an engine only then
                engine.add_event_handler(event, self.take, f"{order} on {moment}")

    def take(self, engine: Any, told: str) -> None:
        iteration = self.run.trainer.state.iteration
        in_turn = not self.alternating or told.startswith(ALTERNATING[iteration % 2]) or told.endswith("masks_updated")
        if iteration % self.every == 0 and in_turn:
            self.states.setdefault(saved(self.run.state()), f"{told} at iteration {iteration}")


def resumed(states: dict[bytes, str], at_the_end: bytes, **options: Any) -> Iterator[tuple[str, Run]]:
    """Yield for each state the run that loaded it, and went on; every other one loads its objects from the last to
    the first.
    """
    for index, (state, moment) in enumerate(states.items()):
        if state != at_the_end:
            run = build(OTHER_SEED, **options)
            run.attach()
            run.load(loaded(state), backwards=index % 2 == 1)
            run.start()
            yield moment, run
            run.detach()


def assert_resumes(
    moments: tuple[str, ...] = ("iteration_completed",),
    orders: tuple[str, ...] = ALTERNATING,
    every: int = 1,
    **options: Any,
) -> int:
    """Law 5: from whatever checkpoint, the run ends with the bits it ended with; return how many there were."""
    run = build(**options)
    taken = Checkpoints(run, moments, orders, every)
    run.start()
    end, last = run.result(), run.trainer.state.iteration
    at_the_end = saved(run.state())
    run.detach()
    assert len(taken.states) >= len(taken.iterations) // every >= 6 // every, "one of every iteration at least"
    states = {state: moment for state, moment in taken.states.items() if not moment.endswith(f" {last}")}
    for moment, again in resumed(states, at_the_end, **options):
        assert_same_bits(again.result(), end, f"{moment}: result")
    return len(states)
