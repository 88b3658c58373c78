"""Measure the package and print one table of ratios; see README.md in this folder.

Each row is measured in a process of its own, because the memory that one row leaves to the allocator changes the time
of the next. Speed is not asserted: the exit code is 0 even if a target is missed, and 1 if a row could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from rich.console import Console

import blocks
import counts
import dynamic
import evidence
import memory
import regularisers
import rewinding
import sizes
import steps
import structured
import updates
from rows import Missing, Row, Settings, from_plain, plain
from tables import Rows, missed, show, write_json

Measure = Callable[[Settings], Iterable[Row | Missing]]
MEASURES: dict[str, Measure] = {
    "update": updates.update,
    "peer": updates.peer,
    "memory": memory.memory,
    "dtypes": updates.dtypes,
    "scale": updates.scale,
    "step": steps.stack_step,
    "resnet": steps.resnet_step,
    "counts": counts.counts,
    "checkpoint": sizes.checkpoint,
    "import": sizes.imports,
    "others": updates.others,
    "gathering": evidence.gathering,
    "wanda": evidence.wanda,
    "sparsegpt": evidence.sparsegpt,
    "obs": evidence.obs,
    "shapley": evidence.shapley,
    "blocks": blocks.blocks,
    "rewinding": rewinding.rewinding,
    "slicing": structured.slicing,
    "heads": structured.heads,
    "smaller": structured.smaller,
    "billion": updates.billion,
    "group_lasso": regularisers.group_lasso,
    "dynamic": dynamic.every_hundred,
    "dynamic_steps": dynamic.every_step,
}


def main() -> int:
    options, load, start = _options(), _load(), time.perf_counter()
    if options.child:
        _measure(options)
        return 0
    console, rows, failed = Console(), {}, []
    names = [options.only] if options.only else [name for name in MEASURES if name != "billion" or options.billion]
    for name in names:
        with console.status(f"measuring {name} ..."):
            rows[name], succeeded = _in_its_own_process(name)
        failed += [] if succeeded else [name]
    show(console, rows)
    about = _about(options, load, time.perf_counter() - start)
    if options.json:
        write_json(options.json, rows, about)
    console.print(_summary(rows, failed, about), soft_wrap=True)
    return 1 if failed else 0


def _in_its_own_process(name: str) -> tuple[list[Row | Missing], bool]:
    """Return the rows of one measurement, and whether it succeeded."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--child", str(found)]
        answer = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if answer.returncode:
            last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
            return [Missing(name, f"failed, exit code {answer.returncode}: {last}")], False
        return [from_plain(each) for each in json.loads(found.read_text(encoding="utf-8"))], True


def _measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    settings = Settings(torch.device(options.device), rounds=3 if options.quick else 11)
    rows = [plain(row) for row in MEASURES[options.only](settings)]
    options.child.write_text(json.dumps(rows), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory of ignite_prune as a table of ratios.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, noisier figures")
    parser.add_argument("--only", choices=MEASURES, metavar="NAME", help=f"one of {', '.join(MEASURES)}")
    parser.add_argument("--billion", action="store_true", help="also update 1 billion parameters (12 GiB of memory)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    parser.add_argument("--threads", type=int, default=2, help="torch.set_num_threads (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)  # this process measures one row into this file
    return parser.parse_args()


def _load() -> float:
    """Return the load average; before the measurements it is caused by other processes."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _about(options: argparse.Namespace, load: float, seconds: float) -> dict[str, object]:
    return {
        "device": options.device,
        "threads": options.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rounds": 3 if options.quick else 11,
        "load_before": round(load, 2),
        "seconds": round(seconds),
    }


def _summary(rows: Rows, failed: list[str], about: dict[str, object]) -> str:
    failures = f"[bold red]Failed[/]: {', '.join(failed)}.\n" if failed else ""
    below = missed(rows)
    verdict = f"[bold red]Missed[/]: {'; '.join(below)}." if below else "No target is missed."
    where = f"{about['device']}, {about['threads']} threads, torch {about['torch']}, Python {about['python']}"
    busy = "\nThe machine was busy before the start (load {:.1f}): repeat the measurement when it is idle."
    rounds = f"at most {about['rounds']} rounds, {about['seconds']} s"
    load = about["load_before"]
    return f"\n{failures}{verdict}\n{where}; {rounds}.{busy.format(load) if load > 0.7 else ''}"


if __name__ == "__main__":
    sys.exit(main())
