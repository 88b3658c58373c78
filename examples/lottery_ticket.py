"""Lottery tickets on handwritten digits: does the mask matter, or the initial weights?

An MLP 64-300-100-10 is trained, a fifth of the remaining weights of each layer is pruned, and the rest is rewound to
the initial values. This is repeated until one weight in a hundred is left. At some densities the *ticket* is trained
together with its controls: the same mask with newly initialised weights (*reinit*), and masks shuffled within each
layer with the same weights (*shuffled*). A second network is pruned in the same way and never rewound (*fine-tuned*).
All have the same hyperparameters, and each seed has its own split, weights and order of the data:

    python examples/lottery_ticket.py
    python examples/lottery_ticket.py --quick
    python examples/lottery_ticket.py --seeds 16 --output runs/many

The *barrier* measures whether two trainings from the same initial weights, with the data in different orders, end in
the same loss basin: it is the increase of the error on the straight line between the two solutions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from command_line import Parser
from compare_nets import BATCH, LOSS, Data, accuracy, load_data, make_mlp
from ignite.engine import Engine, create_supervised_trainer
from lottery_report import Figures, Record, report
from rich.progress import Progress
from torch import Tensor, nn

from ignite_prune import LotteryTicket, PruneHandler, allocation, barrier, create_pruning_engine
from ignite_prune.handlers import Control
from ignite_prune.handlers.lottery.lottery_ticket import rates

CONTROLS = {"ticket": Control.TICKET, "reinit": Control.REINIT, "shuffled": Control.SHUFFLED}


@dataclass(frozen=True)
class Settings:
    """Settings of the example; ``levels`` are the rounds at which controls are trained."""

    seeds: int = 8
    epochs: int = 15
    rate: float = 0.2
    levels: tuple[int, ...] = (4, 8, 11, 13, 15, 16, 18, 20)
    lr: float = 5e-3
    workers: int = 2

    def __post_init__(self) -> None:
        for name, (low, high) in {"seeds": (1, 999), "epochs": (1, 999), "lr": (1e-6, 1), "workers": (1, 64)}.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"--{name} should be from {low} to {high}, but given {value}")


QUICK = Settings(seeds=2, epochs=5, rate=0.36, levels=(5, 10))


class Shuffled:
    """Training digits in batches, reshuffled each epoch with torch's random numbers."""

    def __init__(self, data: Data) -> None:
        self.images, self.labels = (torch.cat(parts) for parts in zip(*data.train))

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self.labels)).split(BATCH):
            yield self.images[chosen], self.labels[chosen]


def make_training(settings: Settings, seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Engine]:
    torch.manual_seed(seed)
    model = make_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    return model, optimizer, create_supervised_trainer(model, optimizer, LOSS)


def error(output: Tensor, labels: Tensor) -> Tensor:
    """Return the classification error in percent."""
    return (output.argmax(1) != labels).float().mean() * 100


def find_tickets(settings: Settings, seed: int, data: Data) -> list[Record]:
    """Prune round by round, and train the ticket and its controls at each level."""
    model, optimizer, trainer = make_training(settings, seed)
    ticket = LotteryTicket(
        model,
        optimizer,
        trainer,
        Shuffled(data),
        epochs=settings.epochs,
        rate=settings.rate,
        evaluator=lambda: {"accuracy": 100 * accuracy(model, data)},
    )
    records = []
    for level in settings.levels:
        results = ticket.run(rounds=level)
        density = 1 - ticket.pruner.sparsity
        if level == settings.levels[0]:
            records.append(Record(seed, "dense", 1.0, results[0]["metrics"]["accuracy"]))
        for name, control in CONTROLS.items():
            # Trained twice with two orders of the data: their mean is reported, and the barrier between them.
            both = [ticket.train(control, seed=seed, order=order) for order in (1, 2)]
            mean = sum(each.metrics["accuracy"] for each in both) / 2
            height = barrier(both[0].model, both[1].model, data.test, error)
            records.append(Record(seed, name, density, mean, height))
    return records


def fine_tune(settings: Settings, seed: int, data: Data) -> list[Record]:
    """Prune the same network at the same rates without rewinding."""
    model, optimizer, trainer = make_training(settings, seed)
    groups = rates(model, settings.rate)
    engine = create_pruning_engine(
        trainer,
        PruneHandler(model, optimizer, groups, allocation=allocation.Uniform()),
        Shuffled(data),
        epochs=settings.epochs,
        evaluator=lambda: {"accuracy": 100 * accuracy(model, data)},
        fine_tune=settings.epochs,
    )
    engine.run(max_epochs=settings.levels[-1])
    by_round = [each for each in engine.results if each["round"] - (each["stage"] == "trained") in settings.levels]
    return [Record(seed, "fine-tuned", 1 - each["sparsity"], each["metrics"]["accuracy"]) for each in by_round]


def measure(settings: Settings, seed: int) -> list[Record]:
    """Return all records of one seed."""
    torch.set_num_threads(1)  # the same numbers for any number of cores
    data = load_data(seed, flat=True)
    return find_tickets(settings, seed, data) + fine_tune(settings, seed, data)


def make_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, base = parser.add_argument, Settings()
    add("--quick", action="store_true", help=f"{QUICK.seeds} seeds, {QUICK.epochs} epochs per training, fewer rounds")
    add("--seeds", type=int, help=f"number of seeds ({base.seeds})")
    add("--epochs", type=int, help=f"epochs of each training ({base.epochs})")
    add("--lr", type=float, help=f"learning rate of Adam ({base.lr})")
    add("--workers", type=int, help=f"number of processes, one seed each ({base.workers})")
    add("--output", type=Path, default=Path("runs/lottery"), help="output folder for plot and figures (runs/lottery)")
    return parser


def main(arguments: Sequence[str] | None = None) -> Figures:
    """Measure every seed, print and draw the results, and return them."""
    parser = make_parser()
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    quick, folder = options.pop("quick"), options.pop("output")
    settings = parser.settle(QUICK if quick else Settings(), options, folder)
    figures = Figures()
    with ProcessPoolExecutor(settings.workers, get_context("spawn")) as pool, Progress(transient=True) as bar:
        seeds = pool.map(partial(measure, settings), range(settings.seeds))
        for records in bar.track(seeds, total=settings.seeds, description="seeds"):
            figures.records.extend(records)
    report(figures, folder)
    return figures


if __name__ == "__main__":
    main()
