"""Measurements and output of the shrinking example: latencies, FLOPs, two tables and a plot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("agg")  # draws to files, with or without a screen

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ignite_prune.structure import Report

BATCH = 32
History = list[dict[str, Any]]  # one entry per epoch: accuracy, seconds, parameters, unmasked parameters, FLOPs

FULL, SMALL, LAYER = "#0072B2", "#D55E00", "#8C8C8C"  # distinguishable with every kind of colour vision


@dataclass(frozen=True)
class Export:
    """The file of the small network, and whether the network loaded from it gives identical outputs."""

    path: Path
    equal: bool


@dataclass(frozen=True)
class Figures:
    """All results.

    Args:
        full: the full-size network.
        small: the shrunk network.
        dense: history of the full-size network.
        history: history of the shrunk network.
        end: the epoch at whose start it was shrunk.
        report: report of the slicing.
        latencies: seconds per batch, of the full-size and of the small network.
        exported: the saved file.
    """

    full: nn.Module
    small: nn.Module
    dense: History
    history: History
    end: int
    report: Report
    latencies: tuple[float, ...]
    exported: Export

    @property
    def seconds(self) -> tuple[float, float]:
        """Median CPU time of an epoch before and after the slicing, in the same training."""
        seconds = [entry["seconds"] for entry in self.history]
        return median(seconds[: self.end - 1]), median(seconds[self.end - 1 :])

    def pair(self, name: str) -> tuple[Any, Any]:
        """Return one value of the last epoch, for the full-size and the small network."""
        return self.dense[-1][name], self.history[-1][name]


def flops(model: nn.Module) -> int:
    """Return the floating-point operations of a forward pass over a batch of digits."""
    mode = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(BATCH, 1, 8, 8))
    model.train(mode)
    return counter.get_total_flops()


@torch.no_grad()
def latencies(models: Sequence[nn.Module], x: Tensor, rounds: int) -> tuple[float, ...]:
    """Return each model's median CPU seconds per batch, alternating; CPU time excludes other programs."""
    times: list[list[float]] = [[] for _ in models]
    for model in models:
        model.eval()(x)  # warm
    for _ in range(rounds):
        for model, mine in zip(models, times):
            start = time.process_time()
            model(x)
            mine.append(time.process_time() - start)
    return tuple(median(mine) for mine in times)


def report(figures: Figures, folder: Path) -> None:
    """Print the tables and the paths, and draw the plot."""
    draw(figures, folder / "picture.png")
    console = Console(highlight=False)
    console.print(make_table(figures))
    console.print(channels_table(figures))
    before, after = figures.pair("accuracy")
    loaded = "equal to the bit" if figures.exported.equal else "DIFFERENT"
    for line in (
        f"accuracy     full size {before:.2%}, shrunk {after:.2%} ({100 * (after - before):+.2f} points)",
        f"slicing      at the start of epoch {figures.end}; outputs differ from the masked network's by "
        f"{figures.report.error:.0e} of the largest output",
        f"model        {figures.exported.path}; loaded into a new full-size network, outputs are {loaded}",
        f"picture      {folder / 'picture.png'}",
    ):
        console.print(line, soft_wrap=True)  # a wrapped path could not be copied


def make_table(figures: Figures) -> Table:
    table = Table("", title="Measured here", title_justify="left")
    for heading in ("full size", "shrunk", "less by"):
        table.add_column(heading, justify="right")
    (right, right_after), (parameters, left), (work, less) = map(figures.pair, ("accuracy", "parameters", "flops"))
    (slow, fast), (long, short) = figures.latencies, figures.seconds
    table.add_row("accuracy", f"{right:.2%}", f"{right_after:.2%}", "")
    table.add_row("parameters", f"{parameters:,}", f"{left:,}", f"{parameters / left:.1f}×")
    table.add_row(f"MFLOPs, batch of {BATCH}", f"{work / 1e6:,.0f}", f"{less / 1e6:,.0f}", f"{work / less:.1f}×")
    table.add_row(f"CPU ms, batch of {BATCH}", f"{1e3 * slow:.2f}", f"{1e3 * fast:.2f}", f"{slow / fast:.1f}×")
    table.add_row("CPU seconds per epoch", f"{long:.2f}", f"{short:.2f}", f"{long / short:.1f}×")
    return table


def channels(model: nn.Module) -> dict[str, int]:
    """Return the number of output channels of each convolution."""
    layers = model.named_modules()
    return {name.removesuffix(".conv"): layer.out_channels for name, layer in layers if isinstance(layer, nn.Conv2d)}


def channels_table(figures: Figures) -> Table:
    table = Table("convolution")
    for heading in ("channels", "kept"):
        table.add_column(heading, justify="right")
    kept = channels(figures.small)
    for name, many in channels(figures.full).items():
        table.add_row(name, str(many), str(kept[name]))
    return table


def draw(figures: Figures, path: Path) -> None:
    """Draw accuracy and size over the epochs (left), channels and remaining costs (right)."""
    before, after = figures.pair("accuracy")
    slow, fast = figures.latencies
    figure, ((accuracies, layers), (sizes, costs)) = plt.subplots(
        2, 2, figsize=(13, 6.8), width_ratios=(1.25, 1), layout="constrained"
    )
    figure.suptitle(
        f"Shrunk during training: {slow / fast:.1f} times as fast, accuracy {after:.1%} (full size {before:.1%})",
        fontsize=15,
    )
    draw_accuracy(accuracies, figures)
    draw_sizes(sizes, figures)
    draw_channels(layers, figures)
    draw_costs(costs, figures)
    for axes in (accuracies, sizes, layers, costs):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def mark(axes: Axes, figures: Figures, label: str | None) -> None:
    """Mark the time of the slicing, between two epochs."""
    axes.axvline(figures.end - 0.5, color="black", lw=1.2, ls="--", label=label)
    axes.set_xlim(0.5, len(figures.history) + 0.5)
    axes.grid(alpha=0.3)


def draw_accuracy(axes: Axes, figures: Figures) -> None:
    for history, label, colour, marker in (
        (figures.dense, "full size", FULL, "s"),
        (figures.history, "shrinking", SMALL, "o"),
    ):
        accuracies = [100 * entry["accuracy"] for entry in history]
        axes.plot(range(1, len(history) + 1), accuracies, color=colour, marker=marker, ms=4, lw=2, label=label)
    both = (figures.dense, figures.history)
    settled = min(100 * entry["accuracy"] for history in both for entry in history[len(history) // 4 :])
    axes.set(title="Accuracy on unseen digits", ylabel="accuracy (%)", ylim=(max(0, min(95, settled - 1)), 100.3))
    mark(axes, figures, "sliced")
    axes.legend(loc="lower right")


def draw_sizes(axes: Axes, figures: Figures) -> None:
    epochs = range(1, len(figures.history) + 1)
    for name, label, colour, line in (
        ("kept", "unmasked parameters", LAYER, "-"),
        ("parameters", "parameters", SMALL, "-"),
        ("flops", "FLOPs", FULL, ":"),
    ):
        whole = figures.pair("flops" if name == "flops" else "parameters")[0]
        values = [100 * entry[name] / whole for entry in figures.history]
        axes.plot(epochs, values, line, color=colour, lw=2.5, drawstyle="steps-mid", label=label)
    mark(axes, figures, None)
    axes.set(title="Size of the shrinking network", xlabel="epoch", ylabel="% of full size", ylim=(0, 105))
    axes.legend(loc="upper right")


def draw_channels(axes: Axes, figures: Figures) -> None:
    before, after = channels(figures.full), channels(figures.small)
    places = range(len(before))
    axes.bar(places, before.values(), 0.7, color=FULL, alpha=0.25, label="full size")
    bars = axes.bar(places, after.values(), 0.7, color=SMALL, label="shrunk")
    axes.bar_label(bars, [f"{after[name]} of {many}" for name, many in before.items()], padding=2)
    axes.set_xticks(places, [name.replace(".", "\n") for name in before])
    axes.set(title="Channels of each convolution")
    axes.legend(loc="upper left")


def draw_costs(axes: Axes, figures: Figures) -> None:
    costs = {
        "parameters": figures.pair("parameters"),
        "FLOPs": figures.pair("flops"),
        f"latency, batch of {BATCH}": figures.latencies,
        "seconds per epoch": figures.seconds,
    }
    left = [100 * after / before for before, after in costs.values()]
    axes.barh(list(costs), [100] * len(costs), 0.6, color=FULL, alpha=0.25)
    bars = axes.barh(list(costs), left, 0.6, color=SMALL)
    axes.bar_label(bars, [f"{value:.0f} %" for value in left], padding=4)
    axes.invert_yaxis()
    axes.set(title="Remaining cost", xlabel="% of full size", xlim=(0, 105))
