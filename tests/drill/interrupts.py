"""Ctrl-C and failed allocations at any line: an update, a load, a rewind or a slicing is done or not done."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from ignite.engine import Events

from ignite_prune.handlers import DynamicSparse
from tests.catalogue.runs import Run, build
from tests.drill.options import drawn
from tests.drill.outcome import Outcome
from tests.laws.test_interrupted import SCENARIOS, Cut, state
from tests.models import assert_same_bits

CUTS = 12
Made = tuple[Callable[[], Any], Callable[[], Any]]
"""What returns the state, and the act."""


class _Stop(Exception):
    pass


def _of_the_laws(dice: random.Random) -> tuple[str, Callable[[], Made]]:
    name = dice.choice(list(SCENARIOS))

    def make() -> Made:
        objects, act = SCENARIOS[name][0]()
        return lambda: state(*objects), act

    return name, make


def _stopped(options: dict[str, Any], at: int, seed: int = 0) -> Run:
    run = build(seed, **options)
    run.attach()
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=at), lambda engine: engine.terminate())
    if "rounds" not in options and "shrinks" not in options:  # whose state is loaded into a new model alone
        run.start()
    return run


def _load(dice: random.Random) -> tuple[str, Callable[[], Made]]:
    """Load the state of an object of a run into the same one of another run."""
    options = drawn(dice)
    other = build(1, **options)
    other.attach()
    other.start()
    saved = copy.deepcopy(other.state())
    other.detach()
    name = dice.choice(sorted(set(saved) - {"model", "optimizer", "trainer", "lr"}))

    def make() -> Made:
        run = _stopped(options, 5)
        if "shrinks" in options and name != "shrinker":  # their states are of the sliced model
            run.objects["shrinker"].load_state_dict(copy.deepcopy(saved["shrinker"]))
        return lambda: copy.deepcopy(run.state()), lambda: run.objects[name].load_state_dict(copy.deepcopy(saved[name]))

    return f"{name} of {options} is loaded", make


def _rewire(dice: random.Random) -> tuple[str, Callable[[], Made]]:
    options = {"handler": dice.choice(["set", "rigl", "srigl", "sparse_momentum"])}

    def stop(engine: Any) -> None:
        raise _Stop

    def make() -> Made:
        run = build(**options)
        handler = next(each for each in run.objects.values() if isinstance(each, DynamicSparse))
        run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2 * handler._every), stop)
        run.attach()
        with suppress(_Stop):  # when an update is due, before it is made
            run.start()
        return lambda: copy.deepcopy(run.state()), lambda: handler._rewire(0.3, lambda: None)

    return f"{options} rewires", make


def interrupts(seed: int) -> Outcome:
    dice, outcome = random.Random(f"interrupts {seed}"), Outcome()
    told, make = dice.choice([_of_the_laws, _load, _load, _rewire])(dice)
    now, act = make()
    before = now()
    try:
        with Cut() as counted:
            act()
    except (TypeError, ValueError):  # it cannot be done at all, as a load into a run of other evidence
        return outcome
    after = now()
    for _ in range(CUTS):
        at, error = dice.randint(1, max(1, counted.seen)), dice.choice([KeyboardInterrupt, MemoryError])
        now, act = make()
        with Cut(at, error):
            act()
        torch.set_grad_enabled(True)
        outcome.runs += 1
        found = now()
        try:
            assert_same_bits(found, before)
        except AssertionError:
            try:
                assert_same_bits(found, after)
            except AssertionError as difference:
                outcome.differs(f"{told}, {error.__name__} at line {at} of {counted.seen}: {difference!s:.120}")
    return outcome
