"""Measure the package and print one table of ratios; see README.md in this folder.

Speed is not asserted: the exit code is 0 even if a target is missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterable

import torch
from rich.console import Console
from rich.table import Table

import blocks
import dynamic
import evidence
import memory
import regularisers
import rewinding
import sizes
import steps
import structured
import updates
from rows import Missing, Row, Settings, number

Measure = Callable[[Settings], Iterable[Row | Missing]]
MEASURES: dict[str, Measure] = {
    "update": updates.update,
    "peer": updates.peer,
    "memory": memory.memory,
    "dtypes": updates.dtypes,
    "scale": updates.scale,
    "step": steps.stack_step,
    "resnet": steps.resnet_step,
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
    "smaller": structured.smaller,
    "group_lasso": regularisers.group_lasso,
    "dynamic": dynamic.every_hundred,  # last, because it configures the allocator to keep freed memory
}


def main() -> None:
    options, load = _options(), _load()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    settings = Settings(torch.device(options.device), rounds=3 if options.quick else 11)
    chosen = {options.only: MEASURES[options.only]} if options.only else dict(MEASURES)
    if options.billion:
        chosen["billion"] = updates.billion
    console, start = Console(), time.perf_counter()
    table, missed = _table(), []
    for name, measure in chosen.items():
        with console.status(f"measuring {name} ..."):
            rows = list(measure(settings))
        for index, row in enumerate(rows):
            _add(table, "" if index else name, row)
            missed += [row.what.strip()] if isinstance(row, Row) and row.met is False else []
        table.add_section()
    console.print(table)
    console.print(_summary(settings, missed, load, time.perf_counter() - start))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory of ignite_prune as a table of ratios.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, noisier figures")
    parser.add_argument("--only", choices=MEASURES, metavar="NAME", help=f"one of {', '.join(MEASURES)}")
    parser.add_argument("--billion", action="store_true", help="also update 1 billion parameters (12 GiB of memory)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    parser.add_argument("--threads", type=int, default=2, help="torch.set_num_threads (default 2)")
    return parser.parse_args()


def _table() -> Table:
    table = Table(
        title="ignite_prune, measured", caption="copy = time to copy these weights once", caption_justify="left"
    )
    table.add_column("row", style="dim", no_wrap=True)
    table.add_column("what")
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("met?", no_wrap=True)
    table.add_column("middle half", justify="right", style="dim", no_wrap=True)
    return table


def _add(table: Table, name: str, row: Row | Missing) -> None:
    what = f"{row.what}\n[dim]{row.note}[/dim]" if row.note else row.what
    if isinstance(row, Missing):
        table.add_row(name, what, "", "n/a")
        return
    verdict = {True: "[green]yes", False: "[bold red]missed", None: ""}[row.met]
    table.add_row(name, what, row.target, f"{number(row.value)} {row.unit}", verdict, row.half)


def _load() -> float:
    """Return the load average; before the measurements it is caused by other processes."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _summary(settings: Settings, missed: list[str], load: float, seconds: float) -> str:
    verdict = f"[bold red]Missed[/]: {'; '.join(missed)}." if missed else "Every target is met."
    where = f"{settings.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    busy = (
        f"\nThe machine was busy before the start (load {load:.1f}): repeat the measurement when it is idle."
        if load > 0.7
        else ""
    )
    rounds = f"at most {settings.rounds} rounds, {seconds:.0f} s"
    return f"{verdict}\n{where}, Python {platform.python_version()}; {rounds}.{busy}"


if __name__ == "__main__":
    main()
