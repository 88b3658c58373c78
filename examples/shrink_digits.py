"""Shrink a convolutional network while it trains on handwritten digits: half of its channels are sliced off.

The same network is trained twice from the same initial weights. One keeps its full size. The channels of the other are
pruned gradually and then sliced off, together with BatchNorm and Adam's state, and the rest of the run trains the
smaller network. The output is a measurement of the savings, a plot, and the small network in a file:

    python examples/shrink_digits.py
    python examples/shrink_digits.py --quick
    python examples/shrink_digits.py --sparsity 0.75 --output runs/quarter
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from command_line import Parser
from compare_nets import Data, accuracy, load_data
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import PiecewiseLinear, ProgressBar
from shrink_report import BATCH, Export, Figures, History, flops, latencies, report
from torch import Tensor, nn
from torch.nn import functional as F

from ignite_prune import PruneHandler, ShrinkHandler, allocation, load_shrunk, pattern, saliency, schedule, trace
from ignite_prune.structure import shrunk_state

WIDTH = 64


@dataclass(frozen=True)
class Settings:
    """Settings of the example."""

    sparsity: float = 0.5
    epochs: int = 16
    seed: int = 0
    rounds: int = 200

    def __post_init__(self) -> None:
        for name, (low, high) in {"sparsity": (0.05, 0.95), "epochs": (3, 999), "seed": (0, 2**32 - 1)}.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"--{name} should be from {low} to {high}, but given {value}")

    @property
    def begin(self) -> int:
        """The last dense epoch, from which the evidence for the first update is collected."""
        return max(1, self.epochs // 8)

    @property
    def end(self) -> int:
        """The epoch at whose start the last channels are pruned and all pruned channels are sliced off."""
        return max(self.begin + 1, self.epochs * 5 // 8)


QUICK = Settings(epochs=6, rounds=50)


class Unit(nn.Sequential):
    """A convolution and its norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs)))


class Block(nn.Module):
    """A residual block: the output of the second convolution is added to the input, so their channels are coupled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Unit(width, width), Unit(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Net(nn.Module):
    """A network for 8×8 pixels: two residual blocks, the second at half the resolution and twice the width."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stem, self.block1 = Unit(1, width), Block(width)
        self.wider, self.block2 = Unit(width, 2 * width), Block(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(F.relu(self.stem(x)))
        x = self.block2(F.relu(self.wider(F.max_pool2d(x, 2))))
        return self.head(x.mean((2, 3)))


def make_training(settings: Settings, data: Data) -> tuple[Net, torch.optim.Optimizer, Engine]:
    torch.manual_seed(settings.seed)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss(label_smoothing=0.1))
    steps = settings.epochs * len(data.train)
    warm_up = [(0, 5e-4), (steps // 5, 5e-3), (steps, 5e-6)]
    trainer.add_event_handler(Events.ITERATION_STARTED, PiecewiseLinear(optimizer, "lr", warm_up))
    return model, optimizer, trainer


def record_history(trainer: Engine, model: nn.Module, data: Data, pruner: PruneHandler | None) -> None:
    """Append the time and results of each epoch to ``trainer.state.history``.

    Attach it after the pruner and the shrinker, so that their work is not counted as training.
    """
    trainer.state.history = []

    @trainer.on(Events.EPOCH_STARTED)
    def start(engine: Engine) -> None:
        engine.state.start = time.process_time()

    @trainer.on(Events.EPOCH_COMPLETED)
    def record(engine: Engine) -> None:
        seconds = time.process_time() - engine.state.start
        parameters = sum(each.numel() for each in model.parameters())
        masked = 0 if pruner is None else sum(int((~mask).sum()) for mask in pruner.masks.values())
        engine.state.metrics["accuracy"] = accuracy(model, data)  # read by the progress bar
        engine.state.metrics["parameters"] = parameters
        engine.state.history.append(
            {
                "accuracy": engine.state.metrics["accuracy"],
                "seconds": seconds,
                "parameters": parameters,
                "kept": parameters - masked,
                "flops": flops(model),
            }
        )


def show(trainer: Engine, title: str) -> None:
    bar = ProgressBar(persist=True, desc=f"{title:>9}", bar_format="{desc} {bar:24} epoch {n_fmt}/{total_fmt}{postfix}")
    names = ["parameters", "accuracy"]
    bar.attach(trainer, names, event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED)


def train_dense(settings: Settings, data: Data) -> tuple[Net, History]:
    model, _, trainer = make_training(settings, data)
    record_history(trainer, model, data, None)
    show(trainer, "full size")
    return model, trainer.run(data.loader(settings.seed), max_epochs=settings.epochs).history


def train_shrinking(settings: Settings, data: Data) -> tuple[Net, ShrinkHandler, History]:
    model, optimizer, trainer = make_training(settings, data)
    example = data.test[0][0][:2]
    pruner = PruneHandler(
        model,
        optimizer,
        structure=trace(model, example),
        saliency=saliency.ActivationTaylor(),
        pattern=pattern.Coupled(round_to=8),  # widths that are efficient on common hardware
        allocation=allocation.Uniform(),  # the same fraction of every group
        schedule=schedule.Polynomial(settings.sparsity, settings.begin, settings.end),
    )
    # At the start of an epoch, so that the evaluation at its end uses weights trained under the new masks.
    pruner.attach(trainer, Events.EPOCH_STARTED)
    shrinker = ShrinkHandler(pruner, example)
    shrinker.attach(trainer, Events.EPOCH_STARTED(once=settings.end))
    # Pruning is complete: stop collecting evidence and continue with a plain small network.
    trainer.add_event_handler(Events.EPOCH_STARTED(once=settings.end), lambda _: pruner.finalize())
    record_history(trainer, model, data, pruner)
    show(trainer, "shrinking")
    trainer.run(data.loader(settings.seed), max_epochs=settings.epochs)
    return model, shrinker, trainer.state.history


def export(model: Net, shrinker: ShrinkHandler, data: Data, path: Path) -> Export:
    """Save the small network, load it into a new full-size network, and compare the two."""
    torch.save(shrunk_state(model, shrinker.left), path)
    loaded = load_shrunk(Net(), path).eval()
    images = data.test[0][0]
    with torch.no_grad():
        return Export(path, torch.equal(loaded(images), model.eval()(images)))


def make_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, base = parser.add_argument, Settings()
    add(
        "--quick",
        action="store_true",
        help=f"{QUICK.epochs} epochs and shorter timings (a quarter of a minute)",
    )
    add(
        "--sparsity",
        type=float,
        help=f"fraction of the channels to prune, 0.05 to 0.95; widths stay multiples of 8 ({base.sparsity})",
    )
    add("--epochs", type=int, help=f"epochs of each of the two trainings, at least 3 ({base.epochs})")
    add("--seed", type=int, help=f"seed of weights, split and data order ({base.seed})")
    add(
        "--output",
        type=Path,
        default=Path("runs/shrink"),
        help="output folder for the plot and the network (runs/shrink)",
    )
    return parser


def run(settings: Settings, folder: Path) -> Figures:
    """Train both networks, measure them and save the small one."""
    data = load_data(settings.seed, flat=False)
    full, dense = train_dense(settings, data)
    small, shrinker, history = train_shrinking(settings, data)
    (report,) = shrinker.reports
    exported = export(small, shrinker, data, folder / "model.pt")
    timed = latencies([full, small], data.test[0][0][:BATCH], settings.rounds)
    return Figures(full, small, dense, history, settings.end, report, timed, exported)


def main(arguments: Sequence[str] | None = None) -> Figures:
    """Train, print and draw the results, and return them."""
    parser = make_parser()
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    quick, folder = options.pop("quick"), options.pop("output")
    torch.set_num_threads(1)  # the same numbers for any number of cores
    settings = parser.settle(QUICK if quick else Settings(), options, folder)
    figures = run(settings, folder)
    report(figures, folder)
    return figures


if __name__ == "__main__":
    main()
