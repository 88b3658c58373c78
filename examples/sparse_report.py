"""What the comparison of sparse trainings shows at its end: a table, a picture, and all figures as JSON."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # draws to files, with or without a screen

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from rich import box
from rich.console import Console
from rich.table import Table
from sparse_tasks import Task

# Told apart in every kind of colour vision (Okabe and Ito).
COLOURS = {
    "dense": "#6E6E6E",
    "static": "#56B4E9",
    "SET": "#0072B2",
    "RigL": "#D55E00",
    "sparse momentum": "#CC79A7",
    "gradual": "#009E73",
}
PAIRS = (("SET", "static"), ("RigL", "SET"), ("sparse momentum", "RigL"), ("gradual", "RigL"))


@dataclass(frozen=True)
class Record:
    """One net trained one way.

    Args:
        task: what it learnt.
        method: how.
        seed: of start, data and batches.
        value: the task's measure.
        sparsity: at the end.
    """

    task: str
    method: str
    seed: int
    value: float
    sparsity: float


def values(records: Sequence[Record], task: Task, method: str) -> list[float]:
    """Return a method's measures, one a seed."""
    return [each.value for each in records if (each.task, each.method) == (task.name, method)]


def told(numbers: Sequence[float], digits: int, sign: str = "") -> str:
    spread = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{statistics.mean(numbers):{sign}.{digits}f} ± {spread:.{digits}f}"


def gains(records: Sequence[Record], task: Task, method: str, other: str) -> list[float]:
    """Return by how much a method is better than another, seed by seed."""
    sign = 1 if task.more_is_better else -1
    return [sign * (a - b) for a, b in zip(values(records, task, method), values(records, task, other))]


def make_table(records: Sequence[Record], tasks: Sequence[Task], sparsity: float) -> Table:
    table = Table(title=f"Trained at {sparsity:.0%} sparsity, mean ± std over the seeds", box=box.SIMPLE_HEAD)
    table.add_column("method")
    for task in tasks:
        table.add_column(f"{task.name}: {task.measure}", justify="right")
    for method in COLOURS:
        table.add_row(method, *(told(values(records, task, method), _digits(task)) for task in tasks))
    table.add_section()
    for method, other in PAIRS:
        cells = []
        for task in tasks:
            better = gains(records, task, method, other)
            wins = sum(gain > 0 for gain in better)
            cells.append(f"{told(better, _digits(task), '+')}, better in {wins} of {len(better)}")
        table.add_row(f"{method} against {other}", *cells)
    return table


def _digits(task: Task) -> int:
    return 1 if task.more_is_better else 3


def draw(records: Sequence[Record], tasks: Sequence[Task], sparsity: float, file: Path) -> None:
    figure, panels = plt.subplots(1, len(tasks), figsize=(11, 3.6), layout="constrained")
    for axes, task in zip(panels, tasks):
        draw_task(axes, records, task)
    figure.suptitle(f"{sparsity:.0%} of the connections are gone; each dot is a seed, the line its mean", fontsize=11)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def draw_task(axes: Axes, records: Sequence[Record], task: Task) -> None:
    methods = list(COLOURS)[::-1]
    for row, method in enumerate(methods):
        found = values(records, task, method)
        axes.plot(found, [row] * len(found), "o", color=COLOURS[method], alpha=0.5, markersize=6, markeredgewidth=0)
        axes.plot([statistics.mean(found)] * 2, [row - 0.32, row + 0.32], color=COLOURS[method], linewidth=2.5)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xlabel(task.measure + ("" if task.more_is_better else " (less is better)"))
    axes.set_title(task.name, loc="left", fontsize=10)
    axes.grid(axis="x", color="#E5E5E5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    if not task.more_is_better:
        axes.invert_xaxis()


def report(records: Sequence[Record], settings: Any, tasks: Sequence[Task], seconds: float, folder: Path) -> None:
    """Print the table, draw the picture and write all figures."""
    console = Console(highlight=False)
    console.print(make_table(records, tasks, settings.sparsity))
    draw(records, tasks, settings.sparsity, folder / "picture.png")
    about = {"settings": asdict(settings), "torch": torch.__version__, "python": platform.python_version()}
    figures = {**about, "seconds": round(seconds, 1), "records": [asdict(each) for each in records]}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    console.print(f"{len(records)} trainings in {seconds:.0f} s. Picture and figures: {folder}/")
