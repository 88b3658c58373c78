"""Output of the saliency comparison: tables, a plot, and all figures as CSV and JSON."""

from __future__ import annotations

import csv
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # draws to files, with or without a screen

import matplotlib.pyplot as plt
import torch
from compare_methods import (
    ACTIVATIONS,
    AT_INIT,
    CONTROL,
    CURVATURE,
    GRADIENTS,
    IN_TRAINING,
    OF_UNITS,
    ON_THE_TRAINED_NET,
    REPAIRS_OF_CONV,
    REPAIRS_OF_MLP,
    TRAINING,
    WEIGHTS,
    Method,
)
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich import box
from rich.console import Console
from rich.table import Table

# Distinguishable with every kind of colour vision (Okabe and Ito).
COLOURS = {
    WEIGHTS: "#0072B2",
    GRADIENTS: "#E69F00",
    CURVATURE: "#009E73",
    ACTIVATIONS: "#CC79A7",
    TRAINING: "#D55E00",
    CONTROL: "#6E6E6E",
}
DASHED = (0, (6, 4))
METHODS = {
    "weights": ON_THE_TRAINED_NET + IN_TRAINING,
    "units": OF_UNITS,
    "at init": AT_INIT,
    "repair": REPAIRS_OF_MLP + REPAIRS_OF_CONV,
}


@dataclass(frozen=True)
class Record:
    """One model pruned once.

    Args:
        section: "weights", "units", "at init" or "repair".
        method: name of the method; "dense" for the unpruned network.
        sparsity: sparsity of the weights or filters.
        seed: seed of split, weights and order.
        pruned: accuracy directly after pruning.
        tuned: accuracy after fine-tuning; None without fine-tuning.
        seconds: time for scoring and pruning.
    """

    section: str
    method: str
    sparsity: float
    seed: int
    pruned: float
    tuned: float | None
    seconds: float


@dataclass
class Figures:
    """All measurements."""

    records: list[Record]
    settings: Any
    seconds: float
    held: dict[tuple[str, str, float], list[Record]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.held = {}
        for each in self.records:
            self.held.setdefault((each.section, each.method, each.sparsity), []).append(each)

    def values(self, section: str, method: str, sparsity: float = 0.0, tuned: bool = False) -> list[float]:
        """Return a method's accuracies in percent, one per seed."""
        found = self.held[section, method, sparsity]
        return [100 * each.tuned if tuned else 100 * each.pruned for each in found]

    def mean(self, section: str, method: str, sparsity: float = 0.0, tuned: bool = False) -> float:
        return statistics.mean(self.values(section, method, sparsity, tuned))

    def deviation(self, section: str, method: str, sparsity: float = 0.0, tuned: bool = False) -> float:
        """Return the standard deviation over the seeds."""
        values = self.values(section, method, sparsity, tuned)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def levels(self, section: str) -> list[float]:
        return sorted({each.sparsity for each in self.records if each.section == section and each.sparsity})

    def seconds_of(self, section: str, method: str) -> float:
        return statistics.median(
            each.seconds for each in self.records if each.section == section and each.method == method
        )

    def formatted(self, section: str, method: str, sparsity: float, tuned: bool = False) -> str:
        spread = self.deviation(section, method, sparsity, tuned)
        return f"{self.mean(section, method, sparsity, tuned):.1f} ± {spread:.1f}"


def report(figures: Figures, folder: Path) -> None:
    """Print tables and paths, draw the plot and write all figures."""
    draw(figures, folder / "saliencies.png")
    write(figures, folder)
    console = Console(highlight=False)
    seeds = figures.settings.seeds
    tuning = f"{figures.settings.fine_tuning} more epoch{'s' * (figures.settings.fine_tuning > 1)}"
    for section, what in (
        ("weights", "Weights of the MLP"),
        ("units", "Filters of the convolutional network, BatchNorm re-estimated"),
    ):
        console.print(curve_table(figures, section, f"{what}, dense {figures.formatted(section, 'dense', 0.0)} %"))
    console.print(f"Directly after pruning → after {tuning} of training; s: seconds to score and prune once.\n")
    console.print(repair_table(figures))
    console.print(init_table(figures))
    console.print(
        f"Accuracy in percent, mean ± standard deviation over {seeds} seeds; all methods prune the same networks.\n"
    )
    for name, what in (("saliencies.png", "picture"), ("figures.csv", "every run"), ("figures.json", "summary")):
        console.print(f"{what:10} {folder / name}", soft_wrap=True)  # a wrapped path could not be copied
    console.print(f"{'time':10} {figures.seconds:.0f} s")


def plain_table(heading: str, title: str) -> Table:
    """Return a table of at most 80 columns."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")
    table.add_column(heading, no_wrap=True)
    return table


def curve_table(figures: Figures, section: str, title: str) -> Table:
    levels = figures.levels(section)
    table = plain_table("method", title)
    for level in levels:
        table.add_column(f"{level:.0%}" if level < 0.995 else f"{level:.1%}", justify="right", no_wrap=True)
    table.add_column("s", justify="right")
    last = None
    for method in METHODS[section]:
        if last not in (None, method.uses) and CONTROL in (method.uses, last):
            table.add_section()
        last = method.uses
        cells = [
            f"{figures.mean(section, method.name, level):.0f}→{figures.mean(section, method.name, level, True):.0f}"
            for level in levels
        ]
        took = (
            ""
            if method.uses == TRAINING or method in IN_TRAINING
            else f"{figures.seconds_of(section, method.name):.2f}"
        )
        table.add_row(method.name, *cells, took, style="dim" if method.uses == CONTROL else "")
    return table


def repair_table(figures: Figures) -> Table:
    levels = figures.levels("repair")
    table = plain_table("repair", "Repairs, no training")
    for level in levels:
        table.add_column(f"{level:.0%}", justify="right", no_wrap=True)
    for method in METHODS["repair"]:
        if method.name == REPAIRS_OF_CONV[0].name:
            table.add_section()
        table.add_row(method.name, *(figures.formatted("repair", method.name, level) for level in levels))
    return table


def init_table(figures: Figures) -> Table:
    levels = figures.levels("at init")
    title = f"Pruned before training, then trained {figures.settings.epochs} epochs"
    table = plain_table("method", title)
    for level in levels:
        table.add_column(f"{level:.0%}", justify="right")
    for method in AT_INIT:
        cells = (figures.formatted("at init", method.name, level, tuned=True) for level in levels)
        table.add_row(method.name, *cells, style="dim" if method.uses == CONTROL else "")
    return table


# Files


def write(figures: Figures, folder: Path) -> None:
    """Write every run as CSV, and means and deviations with all settings as JSON."""
    with (folder / "figures.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([each.name for each in fields(Record)])
        writer.writerows(astuple(each) for each in figures.records)
    summary = []
    for section, method, sparsity in figures.held:
        row: dict[str, Any] = {"section": section, "method": method, "sparsity": sparsity}
        tuned = figures.held[section, method, sparsity][0].tuned is not None
        for name, after in (("pruned", False), ("tuned", True))[: 1 + tuned]:
            row[name] = round(figures.mean(section, method, sparsity, after), 2)
            row[f"{name}_std"] = round(figures.deviation(section, method, sparsity, after), 2)
        summary.append(row)
    contents = {
        "settings": asdict(figures.settings),
        "seconds": round(figures.seconds, 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
        "accuracy": summary,
    }
    (folder / "figures.json").write_text(json.dumps(contents, indent=1))


# Picture


def nearest(levels: Sequence[float], wanted: float) -> float:
    return min(levels, key=lambda level: abs(level - wanted))


def draw(figures: Figures, path: Path) -> None:
    """Draw curves (left) and every method at one sparsity (right) for weights and filters; other sections below."""
    figure = plt.figure(figsize=(14, 19.5), layout="constrained")
    seeds, epochs = figures.settings.seeds, figures.settings.fine_tuning
    title = f"Saliencies on handwritten digits, mean ± standard deviation of {seeds} seeds"
    figure.suptitle(title, fontsize=17)
    legend, *rows = figure.subfigures(4, 1, height_ratios=(0.12, 1.5, 0.95, 0.95))
    explain(legend, f"after {epochs} more epoch{'s' * (epochs > 1)} of training")
    for row, section, wanted, what in zip(
        rows, ("weights", "units"), (0.9, 0.5), ("weights, MLP", "filters, convolutional network")
    ):
        level = nearest(figures.levels(section), wanted)
        curves, dots = row.subplots(1, 2, width_ratios=(1, 1.05))
        draw_curves(curves, figures, section)
        curves.set_title(f"Directly after pruning: {what}", loc="left", fontsize=13)
        draw_dots(dots, figures, section, level)
        dots.set_title(f"All methods at {level:.0%}: {what}", loc="left", fontsize=13)
    repairs, early = rows[2].subplots(1, 2, width_ratios=(1, 1.05))
    draw_levels(repairs, figures, "repair", list(reversed(METHODS["repair"])), "Repairs, no training", tuned=False)
    repairs.axhline(len(REPAIRS_OF_CONV) - 0.5, color="black", lw=0.8)
    last = figures.levels("at init")[-1]
    ordered = sorted(AT_INIT, key=lambda each: figures.mean("at init", each.name, last, True))
    draw_levels(early, figures, "at init", ordered, "Pruned at initialisation: weights, MLP", tuned=True)
    early.axvline(figures.mean("weights", "dense"), color="black", lw=1, ls=DASHED)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def explain(figure: Any, tuned: str) -> None:
    """Draw the common legend of all panels."""
    handles = [Line2D([], [], color=colour, marker="o", lw=2, label=kind) for kind, colour in COLOURS.items()]
    handles += [
        Line2D([], [], color="black", marker="o", ls="", label="directly after pruning"),
        Line2D([], [], color="black", marker="o", mfc="white", ls="", label=tuned),
        Line2D([], [], color="black", lw=1, ls=DASHED, label="dense"),
    ]
    figure.legend(handles=handles, loc="center", ncols=5, fontsize=11, frameon=False)


def tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curves(axes: Axes, figures: Figures, section: str) -> None:
    levels = figures.levels(section)
    dashes = ["-", (0, (4, 1.5)), (0, (1, 1))]
    markers = iter("osD^vPX*<>")
    used: dict[str, int] = {}
    for method in METHODS[section]:
        if not method.bold:
            continue
        dash = dashes[used.setdefault(method.uses, 0) % len(dashes)]
        used[method.uses] += 1
        axes.errorbar(
            [100 * level for level in levels],
            [figures.mean(section, method.name, level) for level in levels],
            [figures.deviation(section, method.name, level) for level in levels],
            color=COLOURS[method.uses],
            ls=dash,
            marker=next(markers),
            ms=5.5,
            lw=1.8,
            elinewidth=1,
            capsize=2.5,
            label=method.name,
        )
    axes.axhline(figures.mean(section, "dense"), color="black", lw=1, ls=DASHED)
    axes.set(xlabel="sparsity (%)", ylabel="accuracy on unseen digits (%)", ylim=(0, 103))
    axes.set_xticks([100 * level for level in levels])
    tidy(axes)
    axes.legend(loc="lower left", fontsize=10, framealpha=0.9)


def draw_dots(axes: Axes, figures: Figures, section: str, level: float) -> None:
    ordered = sorted(METHODS[section], key=lambda each: figures.mean(section, each.name, level))
    for height, method in enumerate(ordered):
        for tuned in (True, False):
            point(axes, figures, section, method, level, height, tuned, hollow=tuned)
    axes.axvline(figures.mean(section, "dense"), color="black", lw=1, ls=DASHED)
    name_rows(axes, ordered)


def draw_levels(axes: Axes, figures: Figures, section: str, ordered: Sequence[Method], title: str, tuned: bool) -> None:
    """Draw every method at several sparsities, with hollow markers for the lower ones."""
    levels = figures.levels(section)
    markers = dict(zip(reversed(levels), "osD^v"))
    signs = {"o": "●", "s": "□", "D": "◇", "^": "△", "v": "▽"}
    for height, method in enumerate(ordered):
        for level, marker in markers.items():
            point(axes, figures, section, method, level, height, tuned, hollow=marker != "o", marker=marker)
    legend = ", ".join(f"{signs[markers[level]]} {level:.0%}" for level in levels)
    axes.set_title(f"{title} ({legend})", loc="left", fontsize=13)
    name_rows(axes, ordered)


def point(
    axes: Axes,
    figures: Figures,
    section: str,
    method: Method,
    level: float,
    height: float,
    tuned: bool,
    hollow: bool,
    marker: str = "o",
) -> None:
    axes.errorbar(
        figures.mean(section, method.name, level, tuned),
        height,
        xerr=figures.deviation(section, method.name, level, tuned),
        fmt=marker,
        color=COLOURS[method.uses],
        mfc="white" if hollow else COLOURS[method.uses],
        ms=6.5,
        elinewidth=1.2,
        capsize=2,
    )


def name_rows(axes: Axes, methods: Sequence[Method]) -> None:
    axes.set_yticks(range(len(methods)), [method.name for method in methods], fontsize=10)
    for label, method in zip(axes.get_yticklabels(), methods):
        label.set_color(COLOURS[method.uses])
    axes.set(xlabel="accuracy on unseen digits (%)", xlim=(0, 103), ylim=(-0.7, len(methods) - 0.3))
    tidy(axes)
