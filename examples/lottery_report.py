"""Output of the lottery-ticket example: a table, a plot, all figures as CSV, and a summary of the differences."""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # draws to files, with or without a screen

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

# Distinguishable with every kind of colour vision (Okabe and Ito) and by markers.
STYLES = {
    "ticket": ("#D55E00", "o"),
    "reinit": ("#0072B2", "s"),
    "shuffled": ("#6E6E6E", "^"),
    "fine-tuned": ("#009E73", "D"),
}


@dataclass(frozen=True)
class Record:
    """Accuracy of a training (or mean of two trainings) in percent, and the barrier between the two in points."""

    seed: int
    name: str
    density: float
    accuracy: float
    barrier: float | None = None


@dataclass
class Figures:
    """All measurements."""

    records: list[Record] = field(default_factory=list)

    @property
    def densities(self) -> list[float]:
        """Densities in descending order, the same for all seeds."""
        return sorted({round(each.density, 6) for each in self.records if each.name != "dense"}, reverse=True)

    def of(self, name: str, density: float) -> list[Record]:
        """Return one record per seed, ordered by seed."""
        found = [each for each in self.records if each.name == name and round(each.density, 6) == density]
        return sorted(found, key=lambda each: each.seed)

    def accuracies(self, name: str, density: float) -> list[float]:
        return [each.accuracy for each in self.of(name, density)]

    def barriers(self, name: str, density: float) -> list[float]:
        return [each.barrier for each in self.of(name, density) if each.barrier is not None]


def spread(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_std(values: list[float], digits: int = 1) -> str:
    mean, deviation = spread(values)
    return f"{mean:.{digits}f} ±{deviation:.{digits}f}"


def report(figures: Figures, folder: Path) -> None:
    """Print the table, a summary and the paths; write plot and figures."""
    draw(figures, folder / "picture.png")
    with (folder / "figures.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([each.name for each in fields(Record)])
        writer.writerows(map(astuple, figures.records))
    console = Console(highlight=False)
    console.print(make_table(figures))
    for line in [*verdicts(figures), f"picture  {folder / 'picture.png'}", f"figures  {folder / 'figures.csv'}"]:
        console.print(line, soft_wrap=True)


def make_table(figures: Figures) -> Table:
    dense = [each.accuracy for each in figures.records if each.name == "dense"]
    table = Table("left", title_justify="left", padding=(0, 1, 0, 0))
    table.title = f"Accuracy on unseen digits (%), mean ± deviation of {len(dense)} seeds; dense {mean_and_std(dense)}"
    for name in STYLES:
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("ticket", "shuffled"):
        table.add_column(f"barrier,\n{name}", justify="right", no_wrap=True)
    for density in figures.densities:
        row = [mean_and_std(figures.accuracies(name, density)) for name in STYLES]
        row += [mean_and_std(figures.barriers(name, density), 2) for name in ("ticket", "shuffled")]
        table.add_row(f"{density:.1%}", *row)
    return table


def verdicts(figures: Figures) -> list[str]:
    """Print the paired differences of each comparison at the sparsest level."""
    last = figures.densities[-1]
    lines = [f"At {last:.1%} of the weights, seed by seed:"]
    for name in ("reinit", "shuffled", "fine-tuned"):
        pairs = zip(figures.accuracies("ticket", last), figures.accuracies(name, last))
        differences = [mine - other for mine, other in pairs]
        mean, deviation = spread(differences)
        error = deviation / math.sqrt(len(differences))
        better = sum(each > 0 for each in differences)
        says = "the ticket is better" if mean > 0 else "the ticket is worse"
        if len(differences) < 3:
            says = "too few seeds to tell"
        elif abs(mean) <= 2.5 * error:
            says = "no difference is shown"
        lines.append(
            f"  ticket − {name:10} {mean:+6.2f} ± {error:.2f} points (standard error), better in {better} of "
            f"{len(differences)}: {says}"
        )
    lines.append("  (The fine-tuned network was trained through all of its rounds, a ticket through one training.)")
    return lines


def draw(figures: Figures, path: Path) -> None:
    """Draw accuracy against density on the left, the barriers on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), width_ratios=(1.5, 1), layout="constrained")
    dense = [each.accuracy for each in figures.records if each.name == "dense"]
    left.axhline(spread(dense)[0], color="#333333", lw=1, ls=(0, (6, 4)), label="dense")
    lowest = min(mean - each for d in figures.densities for mean, each in [spread(figures.accuracies("shuffled", d))])
    for name in STYLES:
        draw_line(left, name, figures.densities, [figures.accuracies(name, d) for d in figures.densities])
    for name in ("ticket", "shuffled"):
        draw_line(right, name, figures.densities, [figures.barriers(name, d) for d in figures.densities])
    left.set(title="Accuracy on unseen digits", ylabel="accuracy (%)", ylim=(max(0, lowest - 2), 100.5))
    right.set(title="Error barrier between two orders of the data", ylabel="error (points)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("weights left (%)")
        axes.set_xticks([100 * d for d in figures.densities], [f"{100 * d:.2g}" for d in figures.densities])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_line(axes: Axes, name: str, densities: list[float], values: list[list[float]]) -> None:
    colour, marker = STYLES[name]
    means, deviations = zip(*map(spread, values))
    percent = [100 * density for density in densities]
    axes.plot(percent, means, color=colour, marker=marker, lw=2, ms=5, label=name)
    low, high = zip(*((mean - each, mean + each) for mean, each in zip(means, deviations)))
    axes.fill_between(percent, low, high, color=colour, alpha=0.15, lw=0)
