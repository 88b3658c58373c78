"""Compare sparse training methods at 98 % sparsity: sparse from the first step, or dense at first.

Two networks are trained with several seeds: an MLP on handwritten digits, and a character-level language model on
Python's standard library. Dynamic sparse training never has more than 2 % of the connections; gradual pruning ends with
the same number but starts dense. All methods share initial weights, batches and number of iterations, so differences
are paired. Connections are divided over the layers by ERK, unless the method does so itself:

- static: random, fixed connections
- SET: the smallest weights are dropped, random connections are grown
- RigL: the smallest are dropped, connections with the largest gradients are grown
- sparse momentum: connections with the largest momentum are grown, and connections move between layers
- gradual: dense at first, the smallest weights are pruned step by step

and with --all

- SRigL: RigL with the same number of inputs for all neurons of a layer, and weak neurons ablated
- Top-KAST: dense storage; the forward pass uses the largest weights, gradients update ten times as many
- AC/DC: alternating dense and sparse phases of a tenth of the training each
- one shot: dense for a quarter of the training, pruned once, fine-tuned for the rest
- STR: a learnt threshold for each layer, which also determines the sparsity; the table shows it

The output is a table, a plot and all figures as JSON (under three minutes on two cores, under six with --all):

    python examples/sparse_training.py
    python examples/sparse_training.py --all
    python examples/sparse_training.py --quick
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from command_line import Parser, in_processes
from ignite.engine import create_supervised_trainer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from sparse_methods import METHODS, MORE
from sparse_report import Record, report
from sparse_tasks import DIGITS, LANGUAGE, Task
from torch import nn


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison."""

    seeds: int = 8
    sparsity: float = 0.98
    share: float = 1.0  # of each training's iterations
    methods: tuple[str, ...] = tuple(METHODS)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds should be at least 1, but given {self.seeds}")
        if not 0 < self.sparsity < 1:
            raise ValueError(f"--sparsity should be between 0 and 1, but given {self.sparsity:g}")


def run(name: str, task: Task, settings: Settings, seed: int) -> Record:
    """Train one network with one method."""
    torch.set_num_threads(1)  # as fast for small networks, and the same numbers for any number of cores
    torch.manual_seed(seed)
    model = task.make()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Pruning left less than 1 %")  # expected here
        pruner, sparsity = None, 0.0
        if method := {**METHODS, **MORE}[name]:
            pruner, event = method(model, optimizer, task, settings.sparsity)
            pruner.attach(trainer, *event)
        trainer.run(task.batches(seed, task.iterations), max_epochs=1, epoch_length=task.iterations)
        if pruner is not None:
            sparsity = pruner.sparsity
    return Record(task.name, name, seed, task.evaluate(model.eval(), seed), sparsity)


def run_all(settings: Settings, workers: int) -> list[Record]:
    """Run every task, method and seed, ``workers`` at a time."""
    shortened = [replace(task, iterations=round(task.iterations * settings.share)) for task in (DIGITS, LANGUAGE)]
    nets = [(name, task) for task in shortened for name in settings.methods]
    jobs = [(name, task, settings, seed) for seed in range(settings.seeds) for name, task in nets]
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns) as progress:
        shown = progress.add_task(f"0 of {len(jobs)} networks trained", total=len(jobs))
        records = []
        for count, record in enumerate(in_processes(run, jobs, workers), start=1):
            records.append(record)
            latest = f"{record.task}, {record.method}: {record.value:.2f}"
            progress.update(shown, advance=1, description=f"{count} of {len(jobs)} networks trained, {latest}")
    return sorted(records, key=lambda each: each.seed)


def make_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, base = parser.add_argument, Settings()
    add(
        "--quick",
        action="store_true",
        help="2 seeds, a fifth of the iterations: a quick check, not for quoting figures",
    )
    add("--all", action="store_true", help="also run SRigL, Top-KAST, AC/DC, one shot and STR")
    add("--seeds", type=int, help=f"number of trainings of each network and method, from seed 0 ({base.seeds})")
    add("--sparsity", type=float, help=f"sparsity of the selected weights, 0 to 1 ({base.sparsity})")
    add("--workers", type=int, default=2, help="number of processes; each trains one network at a time (2)")
    add("--output", type=Path, default=Path("runs/sparse"), help="output folder (runs/sparse)")
    return parser


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Run the comparison, print and write the results, and return them."""
    parser = make_parser()
    options = vars(parser.parse_args(arguments))
    workers, output, quick, more = (options.pop(name) for name in ("workers", "output", "quick", "all"))
    chosen = {name: value for name, value in options.items() if value is not None}
    chosen["methods"] = (*METHODS, *MORE) if more else tuple(METHODS)
    try:
        settings = replace(Settings(seeds=2, share=0.2) if quick else Settings(), **chosen)
        if workers < 1:
            raise ValueError(f"--workers should be at least 1, but given {workers}")
        output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    start = time.perf_counter()
    records = run_all(settings, workers)
    report(records, settings, (DIGITS, LANGUAGE), time.perf_counter() - start, output)
    return records


if __name__ == "__main__":
    main()
