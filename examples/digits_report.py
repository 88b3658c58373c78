"""Output of the digits example: a table, a plot and the paths of all files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # draws to files, with or without a screen

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ignite_prune import MaskStore, PruneHandler
from ignite_prune.loggers.picture import mask_picture
from ignite_prune.report import report as write_page

History = list[dict[str, Any]]  # one entry per epoch: accuracy, loss and, if pruned, sparsity by layer

DENSE, SPARSE, LAYER = "#0072B2", "#D55E00", "#8C8C8C"  # distinguishable with every kind of colour vision


def report(model: nn.Module, pruner: PruneHandler, dense: History, sparse: History, folder: Path) -> None:
    """Print the table and the paths, draw the plot, and write the page."""
    masks = pruner.masks
    before, after = dense[-1]["accuracy"], sparse[-1]["accuracy"]
    total, left = count(model)
    draw(dense, sparse, masks, folder / "picture.png")
    page = write_page(pruner, folder / "report.html", history={"dense": dense, "sparse": sparse}, title=folder.name)
    console = Console(highlight=False)
    console.print(make_table(model, masks))
    tensorboard = os.path.relpath(Path(sys.executable).with_name("tensorboard"))
    for line in (
        f"accuracy     dense {before:.2%}, sparse {after:.2%} ({100 * (after - before):+.2f} points)",
        f"compression  {total:,} parameters / {left:,} non-zero = {total / max(left, 1):.2f}×",
        f"picture      {folder / 'picture.png'}",
        f"page         {page}",
        f"model        {folder / 'model.pt'}",
        f"curves       {tensorboard} --logdir {folder}",
    ):
        console.print(line, soft_wrap=True)  # a wrapped path could not be copied


def count(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters and of non-zero parameters."""
    return sum(p.numel() for p in model.parameters()), sum(int(p.count_nonzero()) for p in model.parameters())


def make_table(model: nn.Module, masks: MaskStore) -> Table:
    table = Table("layer")
    for heading in ("parameters", "kept", "sparsity"):
        table.add_column(heading, justify="right")

    def add(name: str, parameters: int, kept: int, style: str = "") -> None:
        table.add_row(name, f"{parameters:,}", f"{kept:,}", f"{1 - kept / parameters:.2%}", style=style)

    for name in masks:
        add(name, masks[name].numel(), masks.kept(name))
    total, left = count(model)
    kept = sum(masks.kept(name) for name in masks)
    table.add_section()
    add("subtotal", masks.numel, kept)
    add("biases and norms (dense)", total - masks.numel, left - kept)
    add("the whole model", total, left, style="bold")
    return table


def draw(dense: History, sparse: History, masks: MaskStore, path: Path) -> None:
    """Draw accuracy and sparsity over the epochs on the left, every layer's mask on the right."""
    figure = plt.figure(figsize=(13, 6.4), layout="constrained")
    figure.suptitle(
        f"{masks.sparsity:.0%} of the weights pruned during training: "
        f"accuracy {sparse[-1]['accuracy']:.1%}, dense {dense[-1]['accuracy']:.1%}",
        fontsize=15,
    )
    curves, maps = figure.subfigures(1, 2, width_ratios=(1, 1.1), wspace=0.04)
    upper, lower = curves.subplots(2, 1, sharex=True)
    draw_accuracy(upper, dense, sparse)
    draw_sparsity(lower, sparse)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    draw_masks(maps, masks)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_accuracy(axes: Axes, dense: History, sparse: History) -> None:
    for history, label, colour, marker in ((dense, "dense", DENSE, "s"), (sparse, "sparse", SPARSE, "o")):
        accuracies = [100 * entry["accuracy"] for entry in history]
        axes.plot(range(1, len(history) + 1), accuracies, color=colour, marker=marker, ms=4, lw=2, label=label)
    settled = min(100 * entry["accuracy"] for history in (dense, sparse) for entry in history[len(history) // 10 :])
    axes.set(title="Accuracy on unseen digits", ylabel="accuracy (%)", ylim=(max(0, min(95, settled - 1)), 100.3))
    axes.legend(loc="lower right")


def draw_sparsity(axes: Axes, sparse: History) -> None:
    epochs = range(len(sparse) + 1)
    height = 110.0  # of the previous label; the next one is placed at least one line below
    for name, last in sorted(sparse[-1]["sparsity"].items(), key=lambda item: -item[1]):
        values = [0.0] + [100 * entry["sparsity"][name] for entry in sparse]
        if name == "global":
            axes.plot(epochs, values, color=SPARSE, lw=2.5, marker="o", ms=4, zorder=3, label="all together")
        else:
            height = min(height - 7, 100 * last)
            axes.plot(epochs, values, color=LAYER, lw=1.2)
            axes.annotate(
                layer(name),
                (epochs[-1], height),
                (6, 0),
                textcoords="offset points",
                va="center",
                annotation_clip=False,
            )
    axes.set(title="Sparsity", xlabel="epoch", ylabel="sparsity (%)", ylim=(-3, 103))
    axes.legend(loc="lower right")


def draw_masks(figure: Any, masks: MaskStore) -> None:
    names = list(masks)
    figure.suptitle("Masks: yellow kept, blue pruned", fontsize=12)
    for panel, row in zip(figure.subfigures(2, 1, height_ratios=(2.2, 1)), (names[:3], names[3:])):
        pictures = [mask_picture(as_sheet(masks[name])).permute(1, 2, 0).numpy() for name in row]
        widths = [picture.shape[1] for picture in pictures]
        for axes, name, picture in zip(panel.subplots(1, len(row), width_ratios=widths), row, pictures):
            axes.imshow(picture, interpolation="nearest", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{layer(name)}\n{masks.sparsities()[name]:.0%} pruned", fontsize=10.5)


def as_sheet(mask: Tensor) -> Tensor:
    """Arrange the kernels of a first layer with one input channel as a sheet instead of a thin strip."""
    return mask.reshape(-1, 4, *mask.shape[2:]) if mask.shape[1] == 1 else mask


def layer(name: str) -> str:
    return name.removesuffix(".weight")
