"""Sparse from the first step to the last, or dense at first: what is learnt at 98 % sparsity.

Two nets, each trained from several seeds: an MLP that reads handwritten digits, and a language model that reads
Python's standard library character by character. Dynamic sparse training never has more than 2 % of the connections;
gradual pruning ends with as few but begins dense. All share start, batches and iterations, so differences are paired.
Connections are divided over the layers by ERK, unless the method does so itself:

- static: connections drawn once, and kept
- SET: the smallest go, others grow at random
- RigL: the smallest go, those of the largest gradients grow
- sparse momentum: those of the largest momentum grow, and layers share what there is
- gradual: dense at first, the smallest pruned step by step

and with --all

- SRigL: RigL with as many inputs for each neuron of a layer, poor neurons ablated
- Top-KAST: dense in storage; forward with the largest, gradients for ten times as many
- AC/DC: dense and sparse phases in turn, a tenth of the training each
- one shot: dense for a quarter of the training, pruned at once, fine-tuned for the rest
- STR: a threshold for each layer is learnt, and so is how many connections stay; the table tells

It ends with a table, a picture and all figures as JSON (under three minutes on two cores, under six with --all):

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
    """What decides the figures."""

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
    """Train one net one way."""
    torch.set_num_threads(1)  # as fast for nets so small, and the same numbers however many cores there are
    torch.manual_seed(seed)
    model = task.make()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Pruning left less than 1 %")  # that is what is looked at here
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
        shown = progress.add_task(f"0 of {len(jobs)} nets trained", total=len(jobs))
        records = []
        for count, record in enumerate(in_processes(run, jobs, workers), start=1):
            records.append(record)
            told = f"{record.task}, {record.method}: {record.value:.2f}"
            progress.update(shown, advance=1, description=f"{count} of {len(jobs)} nets trained, {told}")
    return sorted(records, key=lambda each: each.seed)


def make_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, base = parser.add_argument, Settings()
    add("--quick", action="store_true", help="2 seeds, a fifth of the iterations: a look, no figures to quote")
    add("--all", action="store_true", help="SRigL, Top-KAST, AC/DC, one shot and STR too")
    add("--seeds", type=int, help=f"trainings of each net and method, from seed 0 up ({base.seeds})")
    add("--sparsity", type=float, help=f"of the selected weights, 0 to 1 ({base.sparsity})")
    add("--workers", type=int, default=2, help="processes; each trains one net at a time (2)")
    add("--output", type=Path, default=Path("runs/sparse"), help="folder for what comes out (runs/sparse)")
    return parser


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Run the comparison, print and write what came out, and return it."""
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
