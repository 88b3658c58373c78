"""Runs in processes of their own that are killed, and go on in another process from the newest checkpoint."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch
from ignite.handlers import Checkpoint, DiskSaver

from tests.catalogue.runs import build
from tests.models import assert_same_bits

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "tests.catalogue.runs"])  # what every child would import


def run(
    folder: Path,
    checkpoint: str | None,
    first: bool = False,
    dies: tuple[str, int] | None = None,
    resume: bool = False,
    **options: Any,
) -> None:
    """Run to the end, or until the n-th time of a moment, with a checkpoint on each time of another."""
    run = build(**options)
    numbers = iter(range(len(list(folder.glob("*.pt"))), 10**6))
    saver = DiskSaver(folder, require_empty=False)
    write = Checkpoint(run.objects, saver, n_saved=None, global_step_transform=lambda *_: next(numbers))
    if not first:
        run.attach()
    if checkpoint:
        engine, event = run.moments[checkpoint]
        engine.add_event_handler(event, write)
    if first:
        run.attach()
    if dies:
        (engine, event), times = run.moments[dies[0]], []

        @engine.on(event)
        def die() -> None:
            times.append(1)
            if len(times) == dies[1]:
                os.kill(os.getpid(), signal.SIGKILL)

    if resume:
        newest = max(folder.glob("*.pt"), key=lambda path: int(path.stem.split("_")[-1]))
        Checkpoint.load_objects(run.objects, torch.load(newest, weights_only=True))
    run.start()
    torch.save(run.result(), folder / "end.result")


def in_a_process(*args: Any, context: Any = SERVER, **options: Any) -> int | None:
    process = context.Process(target=run, args=args, kwargs=options)
    process.start()
    process.join(120)
    return process.exitcode


def assert_survives(folder: Path, dies: tuple[str, int], checkpoint: str, **options: Any) -> None:
    """Law 5 over two processes and a file: killed and resumed, the same bits as a run that was never stopped."""
    whole, broken = folder / "whole", folder / "broken"
    run(whole, None, **options)
    assert in_a_process(broken, checkpoint, dies=dies, **options) == -signal.SIGKILL
    assert list(broken.glob("*.pt")) and not (broken / "end.result").exists()
    assert in_a_process(broken, checkpoint, resume=True, **options) == 0
    assert_same_bits(*(torch.load(each / "end.result", weights_only=True) for each in (broken, whole)))
