"""Disks that fill: files up to a limit can be written; what was there stays whole, and the run goes on from it."""

from __future__ import annotations

import errno
import random
import resource
import signal
import tempfile
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint, DiskSaver

from ignite_prune import PruneHandler, export
from tests.catalogue.runs import Run, build
from tests.drill.options import drawn
from tests.drill.outcome import Outcome
from tests.models import assert_same_bits, small_net

FULL = {errno.EFBIG, errno.ENOSPC}


def _limit(size: int) -> None:
    """Let this process write files up to a size; a write beyond it is an OSError."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _is_full(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, is of a disk that is full; torch's writer has a text of its own."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or "PytorchStreamWriter" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _run(folder: Path, options: dict[str, Any], fills_at: int, size: int, goes_on: bool) -> Run:
    run = build(**options)
    run.attach()
    write = Checkpoint(run.objects, DiskSaver(folder, require_empty=False), n_saved=None)

    def save(engine: Any) -> None:
        if engine.state.iteration == fills_at:
            _limit(size)
        try:
            write(engine)
        except BaseException as error:
            if not goes_on or not _is_full(error):
                raise

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, save)
    run.start()
    return run


def disks(seed: int) -> Outcome:
    dice, outcome = random.Random(f"disks {seed}"), Outcome(runs=1)
    if dice.random() < 0.3:
        return _export(dice, outcome)
    options, fills_at, goes_on = drawn(dice), dice.randint(2, 6), dice.random() < 0.5
    options.pop("accumulate", None)  # gradients between two steps are in no checkpoint
    whole = build(**options)
    whole.attach()
    whole.start()
    end = whole.result()
    whole.detach()
    told = f"{options}, full from iteration {fills_at}"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            run = _run(folder, options, fills_at, dice.choice([0, 100, 3000, 20_000]), goes_on)
            run.detach()
            if goes_on:
                assert_same_bits(run.result(), end)
        except AssertionError as difference:
            outcome.differs(f"{told}, it went on: {difference!s:.150}")
        except BaseException as error:
            if not _is_full(error):
                outcome.raised(f"{told}: {type(error).__name__}: {error!s:.150}")
        last = whole.trainer.state.iteration  # Ignite begins a finished run again
        numbered = {int(path.stem.split("_")[-1]): path for path in folder.glob("*.pt")}
        files = [path for number, path in sorted(numbered.items()) if number != last]
        for each in files:
            try:
                torch.load(each, weights_only=True)
            except Exception as error:
                outcome.differs(f"{told}: {each.name} is broken, {type(error).__name__}")
                return outcome
        if files:
            again = build(5, **options)
            again.attach()
            Checkpoint.load_objects(again.objects, torch.load(files[-1], weights_only=True))
            again.start()
            try:
                assert_same_bits(again.result(), end)
            except AssertionError as difference:
                outcome.differs(f"{told}, resumed from {files[-1].name}: {difference!s:.150}")
    return outcome


def _export(dice: random.Random, outcome: Outcome) -> Outcome:
    model = small_net()
    pruner = PruneHandler(model)
    pruner.step(0.5)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "model.safetensors")
        export.save(model, path, masks=pruner.masks)
        before = path.read_bytes()
        _limit(dice.randrange(len(before)))
        try:
            export.save(model, path, masks=pruner.masks, overwrite=True)
            outcome.differs("export.save on a full disk raised nothing")
        except Exception as error:
            if not _is_full(error) and "No space" not in str(error) and "File too large" not in str(error):
                outcome.raised(f"export.save on a full disk: {type(error).__name__}: {error!s:.150}")
        if path.read_bytes() != before or len(list(Path(place).iterdir())) != 1:
            outcome.has_changed("export.save on a full disk has changed the folder")
    return outcome
