"""Output of the comparison of sparse training methods: a table, a plot, and all figures as JSON."""

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

# Distinguishable with every kind of colour vision (Okabe and Ito).
COLOURS = {
    "dense": "#6E6E6E",
    "static": "#56B4E9",
    "SET": "#0072B2",
    "RigL": "#D55E00",
    "SRigL": "#E69F00",
    "sparse momentum": "#CC79A7",
    "Top-KAST": "#882255",
    "AC/DC": "#332288",
    "one shot": "#8A8A3A",
    "gradual": "#009E73",
    "STR": "#000000",
}
PAIRS = (
    ("SET", "static"),
    ("RigL", "SET"),
    ("SRigL", "RigL"),
    ("sparse momentum", "RigL"),
    ("Top-KAST", "RigL"),
    ("gradual", "RigL"),
    ("AC/DC", "gradual"),
    ("one shot", "gradual"),
    ("STR", "gradual"),
)


@dataclass(frozen=True)
class Record:
    """One training.

    Args:
        task: name of the task.
        method: name of the method.
        seed: seed of initial weights, data and batches.
        value: value of the task's metric.
        sparsity: final sparsity.
    """

    task: str
    method: str
    seed: int
    value: float
    sparsity: float


def values(records: Sequence[Record], task: Task, method: str) -> list[float]:
    """Return a method's metric values, one per seed."""
    return [each.value for each in records if (each.task, each.method) == (task.name, method)]


def ended(records: Sequence[Record], task: Task, method: str) -> float:
    """Return a method's mean final sparsity."""
    return statistics.mean(each.sparsity for each in records if (each.task, each.method) == (task.name, method))


def mean_and_std(numbers: Sequence[float], digits: int, sign: str = "") -> str:
    spread = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{statistics.mean(numbers):{sign}.{digits}f} ± {spread:.{digits}f}"


def gains(records: Sequence[Record], task: Task, method: str, other: str) -> list[float]:
    """Return the improvement of a method over another for each seed."""
    sign = 1 if task.more_is_better else -1
    return [sign * (a - b) for a, b in zip(values(records, task, method), values(records, task, other))]


def methods_of(records: Sequence[Record]) -> list[str]:
    """Return the trained methods, in the order of their colours."""
    return [method for method in COLOURS if any(each.method == method for each in records)]


def make_table(records: Sequence[Record], tasks: Sequence[Task], sparsity: float) -> Table:
    """Return a table of every method's metric, with its sparsity if that differs from the others."""
    table = Table(title=f"Trained at {sparsity:.0%} sparsity, mean ± std over the seeds", box=box.SIMPLE_HEAD)
    table.add_column("method")
    for task in tasks:
        table.add_column(f"{task.name}: {task.measure}", justify="right")
    for method in methods_of(records):
        table.add_row(method, *(_cell(records, task, method, sparsity) for task in tasks))
    return table


def _cell(records: Sequence[Record], task: Task, method: str, sparsity: float) -> str:
    found = ended(records, task, method)
    other = "" if method == "dense" or abs(found - sparsity) < 5e-4 else f"(at {found:.1%}) "
    return other + mean_and_std(values(records, task, method), _digits(task))


def make_differences(records: Sequence[Record], tasks: Sequence[Task]) -> Table:
    title = "Paired differences (and in how many seeds it is better)"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for task in tasks:
        table.add_column(task.name, justify="right")
    here = methods_of(records)
    for method, other in (pair for pair in PAIRS if set(pair) <= set(here)):
        cells = []
        for task in tasks:
            left = sorted(1 - ended(records, task, each) for each in (method, other))
            if left[1] > 1.5 * left[0]:
                cells.append("another sparsity")
                continue
            better = gains(records, task, method, other)
            wins = sum(gain > 0 for gain in better)
            cells.append(f"{mean_and_std(better, _digits(task), '+')} ({wins} of {len(better)})")
        table.add_row(f"{method} against {other}", *cells)
    return table


def _digits(task: Task) -> int:
    return 1 if task.more_is_better else 3


def draw(records: Sequence[Record], tasks: Sequence[Task], sparsity: float, file: Path) -> None:
    rows = len(methods_of(records))
    figure, panels = plt.subplots(1, len(tasks), figsize=(11, 1.2 + 0.4 * rows), sharey=True, layout="constrained")
    for axes, task in zip(panels, tasks):
        draw_task(axes, records, task)
    labels = [_label(records, tasks, method, sparsity) for method in methods_of(records)]
    panels[0].set_yticks(range(rows), labels[::-1])
    gone = f"{sparsity:.0%} of the connections removed"
    others = ", or the fraction in brackets" if any("(" in label for label in labels) else ""
    figure.suptitle(f"{gone}{others}; each dot is a seed, the line its mean", fontsize=11)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _label(records: Sequence[Record], tasks: Sequence[Task], method: str, sparsity: float) -> str:
    """Return a method's name, with its sparsities if they differ from that of the title."""
    found = [ended(records, task, method) for task in tasks]
    if method == "dense" or all(abs(each - sparsity) < 5e-4 for each in found):
        return method
    return f"{method} ({' and '.join(f'{each:.1%}' for each in found)})"


def draw_task(axes: Axes, records: Sequence[Record], task: Task) -> None:
    methods = methods_of(records)[::-1]
    for row, method in enumerate(methods):
        found = values(records, task, method)
        axes.plot(found, [row] * len(found), "o", color=COLOURS[method], alpha=0.5, markersize=6, markeredgewidth=0)
        axes.plot([statistics.mean(found)] * 2, [row - 0.32, row + 0.32], color=COLOURS[method], linewidth=2.5)
    axes.set_xlabel(task.measure + ("" if task.more_is_better else " (less is better)"))
    axes.set_title(task.name, loc="left", fontsize=10)
    axes.grid(axis="x", color="#E5E5E5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    if not task.more_is_better:
        axes.invert_xaxis()


def report(records: Sequence[Record], settings: Any, tasks: Sequence[Task], seconds: float, folder: Path) -> None:
    """Print the table, draw the plot and write all figures."""
    console = Console(highlight=False)
    console.print(make_table(records, tasks, settings.sparsity))
    console.print(make_differences(records, tasks))
    draw(records, tasks, settings.sparsity, folder / "picture.png")
    about = {"settings": asdict(settings), "torch": torch.__version__, "python": platform.python_version()}
    figures = {**about, "seconds": round(seconds, 1), "records": [asdict(each) for each in records]}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    console.print(f"{len(records)} trainings in {seconds:.0f} s. Plot and figures: {folder}/")
