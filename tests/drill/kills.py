"""Runs that are killed: processes by SIGKILL at any time, also while a checkpoint is written, and runs in memory."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests import killed_run
from tests.catalogue.runs import build
from tests.drill.options import drawn
from tests.drill.outcome import Outcome
from tests.laws.resuming import Checkpoints, loaded, saved
from tests.models import assert_same_bits

FORK = multiprocessing.get_context("fork")  # a case is a process of its own, with everything imported
SAVED_AT = ("iteration_completed", "iteration_completed", "every_2", "epoch_completed", "masks_updated")


def _moments(options: dict[str, Any]) -> list[str]:
    """Return the moments at which checkpoints are written; SR-STE and others may have no update to save at."""
    if "accumulate" in options:  # gradients between two steps are in no checkpoint
        return ["every_2"]
    rounds = ("trained", "pruned", "round") if "rounds" in options else ()
    return [*SAVED_AT, *rounds]


def killed(seed: int) -> Outcome:
    """A process is killed by itself in a handler, or from outside at any time; another one goes on from its files."""
    dice, outcome = random.Random(f"killed {seed}"), Outcome(runs=1)
    options, checkpoint = drawn(dice), ""
    checkpoint = dice.choice(_moments(options))
    first = checkpoint not in ("masks_updated",) and dice.random() < 0.5
    told = f"{options}, saved at {checkpoint}{' before it' * first}"
    with tempfile.TemporaryDirectory() as place:
        whole, broken = Path(place, "whole"), Path(place, "broken")
        killed_run.run(whole, None, **options)
        how = dice.choice(["inside", "outside"])
        if how == "inside":
            dies = ("iteration_completed", dice.randint(2, 9))
            killed_run.in_a_process(broken, checkpoint, context=FORK, first=first, dies=dies, **options)
        else:
            _kill_from_outside(broken, checkpoint, first, dice.random(), options)
        files = sorted(broken.glob("*.pt"), key=lambda each: int(each.stem.split("_")[-1])) if broken.exists() else []
        if not files or (broken / "end.result").exists():  # it died before the first, or was too fast
            return Outcome()
        for each in files:
            try:
                state = torch.load(each, weights_only=True)
            except Exception as error:
                outcome.differs(f"{told}: {each.name} cannot be read, {type(error).__name__}: {error!s:.100}")
                return outcome
        if state["trainer"]["iteration"] == torch.load(whole / "end.result", weights_only=True)["trainer"]["iteration"]:
            return Outcome()  # Ignite begins a finished run again
        code = killed_run.in_a_process(broken, checkpoint, context=FORK, resume=True, first=first, **options)
        if code != 0:
            outcome.differs(f"{told}, killed {how}: the resumed process ended with {code}")
            return outcome
        try:
            assert_same_bits(*(torch.load(each / "end.result", weights_only=True) for each in (broken, whole)))
        except AssertionError as difference:
            outcome.differs(f"{told}, killed {how}: {difference!s:.150}")
    return outcome


def _kill_from_outside(folder: Path, checkpoint: str, first: bool, share: float, options: dict[str, Any]) -> None:
    """Kill a process within a quarter of a second from its first checkpoint, whatever it does then."""
    process = FORK.Process(target=killed_run.run, args=(folder, checkpoint, first), kwargs=options)
    process.start()
    until = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < until and not list(folder.glob("*")):
        time.sleep(0.002)
    time.sleep(0.25 * share**2)
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def in_memory(seed: int) -> Outcome:
    """A run goes on from its states of any moment, in an object that was built again."""
    dice, outcome = random.Random(f"in_memory {seed}"), Outcome()
    options = drawn(dice)
    run = build(**options)
    taken = Checkpoints(run, tuple(dict.fromkeys(_moments(options))), ("first", "last"))
    run.start()
    end, at_the_end, last = run.result(), saved(run.state()), run.trainer.state.iteration
    run.detach()
    states = [(s, m) for s, m in taken.states.items() if s != at_the_end and not m.endswith(f" {last}")]
    for state, moment in dice.sample(states, min(8, len(states))):
        again, backwards = build(5, **options), dice.random() < 0.5
        again.attach()
        outcome.runs += 1
        try:
            again.load(loaded(state), backwards=backwards)
            again.start()
            assert_same_bits(again.result(), end)
        except AssertionError as difference:
            outcome.differs(f"{options}, {moment}{' backwards' * backwards}: {difference!s:.150}")
        except Exception as error:
            outcome.differs(f"{options}, {moment}: {type(error).__name__}: {error!s:.200}")
        finally:
            again.detach()
    return outcome
