"""Compare all saliencies on the same trained networks: accuracy directly after pruning and after fine-tuning.

Two networks are trained on handwritten digits, with several seeds each: an MLP (64-300-100-10), of which single weights
are pruned, and a convolutional network with BatchNorm, of which filters are pruned. Every method prunes a copy of the
same network, so differences are paired. Random and inverted scores are the controls. Two shorter comparisons follow:
pruning at initialisation, and repairs.

The output is a table, a plot and all figures as CSV and JSON (about two minutes on two cores):

    python examples/compare_saliencies.py
    python examples/compare_saliencies.py --quick
    python examples/compare_saliencies.py --seeds 8 --sparsities 0.9 0.95 --output runs/eight
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from command_line import Parser, in_processes
from compare_methods import (
    AT_INIT,
    BATCH_NORM,
    IN_TRAINING,
    OF_UNITS,
    ON_THE_TRAINED_NET,
    REPAIRS_OF_CONV,
    REPAIRS_OF_MLP,
    Method,
)
from compare_nets import Data, accuracy, fine_tune, load_data, make_conv, make_mlp, train
from compare_report import Figures, Record, report
from ignite.engine import Engine, Events
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune import PruneHandler, pattern, prune_model, saliency, score
from ignite_prune.core.selection import select

Scores = dict[str, Tensor]
REPAIRED = (0.5, 0.8, 0.9)
NETS = ("mlp", "conv")


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison."""

    seeds: int = 3
    sparsities: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
    unit_sparsities: tuple[float, ...] = (0.3, 0.5, 0.6, 0.7, 0.8)
    init_sparsities: tuple[float, ...] = (0.95, 0.98)
    epochs: int = 30
    conv_epochs: int = 12
    fine_tuning: int = 2

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "conv_epochs", "fine_tuning"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} should be at least 1, but given {getattr(self, name)}")
        for name in ("sparsities", "unit_sparsities", "init_sparsities"):
            wrong = [each for each in getattr(self, name) if not 0 < each < 1]
            if wrong:
                raise ValueError(f"--{name.replace('_', '-')} should be between 0 and 1, but given {wrong[0]:g}")


QUICK = Settings(2, (0.5, 0.9), (0.5,), (0.98,), 30, 6, 1)


def with_scores(
    method: Method, model: nn.Module, data: Data, params: Any, seed: int, known: dict[Any, Scores]
) -> Method:
    """Return the method with precomputed scores, shared by all sparsities, if scores determine its masks."""
    if method.rescore:
        return method
    key = method.saliency, method.batches, method.loss_fn
    if key not in known:
        generator = torch.Generator().manual_seed(seed)
        batches = data.train[: method.batches]
        options = {"data": batches, "loss_fn": method.loss_fn, "generator": generator}
        known[key] = score(model, params, saliency=method.saliency, **options)
    return given(method, known[key])


def given(method: Method, scores: Scores) -> Method:
    sign = -1 if method.inverted else 1
    return replace(method, saliency=saliency.Given({name: sign * each for name, each in scores.items()}))


def pruned(
    method: Method, model: nn.Module, data: Data, sparsity: float, **options: Any
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """Return a pruned copy of the model and its masks."""
    options |= {
        "sparsity": sparsity,
        "saliency": method.saliency,
        "allocation": method.allocation,
        "repair": list(method.repair),
        "data": data.train if method.repair else data.train[: method.batches],
        "loss_fn": method.loss_fn,
    }
    copied, masks = copy.deepcopy(model), dict[str, Tensor]()
    params = options.pop("params", None)
    for each in select(model) if method.by_layer else [params]:
        masks |= prune_model(copied, each, **options)
    return copied, masks


def compare(
    section: str,
    model: nn.Module,
    data: Data,
    methods: Sequence[tuple[Method, Callable[[], Method]]],
    sparsities: Sequence[float],
    seed: int,
    tuning: int,
    **options: Any,
) -> Iterator[Record]:
    """Yield each method's accuracies at each sparsity on copies of one model, with ``tuning`` epochs of fine-tuning."""
    for method, prepare in methods:
        start = time.perf_counter()
        ready = prepare()
        seconds = time.perf_counter() - start
        for sparsity in sparsities:
            start = time.perf_counter()
            copied, masks = pruned(ready, model, data, sparsity, **options)
            took = seconds + time.perf_counter() - start
            right_after, tuned = accuracy(copied, data), None
            if tuning:
                fine_tune(copied, masks, data, tuning, seed + 1)
                tuned = accuracy(copied, data)
            yield Record(section, method.name, sparsity, seed, right_after, tuned, took)


def collector(methods: Sequence[Method], found: dict[str, Scores]) -> Callable[[nn.Module, Optimizer, Engine], None]:
    """Return a function that attaches each method to a training; the final scores are stored in ``found``."""

    def listen(model: nn.Module, optimizer: Optimizer, trainer: Engine) -> None:
        for index, method in enumerate(methods):
            pruner = PruneHandler(model, optimizer, saliency=method.saliency, shared=True)
            pruner.attach(trainer, Events.COMPLETED, name=f"sparsity_{index}")
            trainer.add_event_handler(Events.COMPLETED, keep, pruner, method.name)

    def keep(trainer: Engine, pruner: PruneHandler, name: str) -> None:
        found[name] = pruner.scores()
        pruner.detach()

    return listen


def run_mlp(settings: Settings, seed: int) -> Iterator[Record]:
    data = load_data(seed, flat=True)
    torch.manual_seed(seed)
    model = make_mlp()
    start, found = copy.deepcopy(model), dict[str, Scores]()
    train(model, data, settings.epochs, seed, collector(IN_TRAINING, found))
    yield Record("weights", "dense", 0.0, seed, accuracy(model, data), None, 0.0)
    known: dict[Any, Scores] = {}
    methods = [
        (each, lambda each=each: with_scores(each, model, data, None, seed, known)) for each in ON_THE_TRAINED_NET
    ]
    methods += [(each, lambda each=each: given(each, found[each.name])) for each in IN_TRAINING]
    yield from compare("weights", model, data, methods, settings.sparsities, seed, settings.fine_tuning)
    repairs = [(each, lambda each=each: each) for each in REPAIRS_OF_MLP]
    yield from compare("repair", model, data, repairs, REPAIRED, seed, 0)
    known_early: dict[Any, Scores] = {}
    early = [(each, lambda each=each: with_scores(each, start, data, None, seed, known_early)) for each in AT_INIT]
    yield from compare("at init", start, data, early, settings.init_sparsities, seed, settings.epochs)


def run_conv(settings: Settings, seed: int) -> Iterator[Record]:
    data = load_data(seed, flat=False)
    torch.manual_seed(seed)
    model = make_conv()
    train(model, data, settings.conv_epochs, seed)
    yield Record("units", "dense", 0.0, seed, accuracy(model, data), None, 0.0)
    known: dict[Any, Scores] = {}
    units = [
        (each, lambda each=each: replace(with_scores(each, model, data, nn.Conv2d, seed, known), repair=[BATCH_NORM]))
        for each in OF_UNITS
    ]
    options = {"params": nn.Conv2d, "pattern": pattern.Channel()}
    yield from compare("units", model, data, units, settings.unit_sparsities, seed, settings.fine_tuning, **options)
    repairs = [(each, lambda each=each: each) for each in REPAIRS_OF_CONV]
    yield from compare("repair", model, data, repairs, REPAIRED, seed, 0)


def run(net: str, settings: Settings, seed: int) -> list[Record]:
    """Train one network and compare all methods on it."""
    torch.set_num_threads(1)  # as fast for small networks, and the same numbers for any number of cores
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Pruning left less than 1 %")  # expected here
        return list({"mlp": run_mlp, "conv": run_conv}[net](settings, seed))


def run_all(settings: Settings, workers: int) -> list[Record]:
    """Run every network and seed, ``workers`` at a time."""
    jobs = [(net, settings, seed) for seed in range(settings.seeds) for net in NETS]
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns) as progress:
        task = progress.add_task(f"0 of {len(jobs)} networks trained and pruned", total=len(jobs))
        records: list[Record] = []
        for count, done in enumerate(in_processes(run, jobs, workers), start=1):
            records += done
            dense = next(each for each in done if each.method == "dense")
            latest = f"last dense accuracy {dense.pruned:.1%}"
            progress.update(
                task, advance=1, description=f"{count} of {len(jobs)} networks trained and pruned, {latest}"
            )
    return sorted(records, key=lambda each: each.seed)


def make_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, base = parser.add_argument, Settings()

    def levels(values: Sequence[float]) -> str:
        return " ".join(f"{each:g}" for each in values)

    add(
        "--quick",
        action="store_true",
        help="2 seeds, few sparsities, one epoch of fine-tuning (half a minute)",
    )
    add("--seeds", type=int, help=f"number of trainings of each network, from seed 0 ({base.seeds})")
    add(
        "--sparsities",
        type=float,
        nargs="+",
        metavar="S",
        help=f"sparsities of the MLP's weights ({levels(base.sparsities)})",
    )
    add(
        "--unit-sparsities",
        type=float,
        nargs="+",
        metavar="S",
        help=f"sparsities of the convolutional network's filters ({levels(base.unit_sparsities)})",
    )
    add(
        "--init-sparsities",
        type=float,
        nargs="+",
        metavar="S",
        help=f"sparsities of the MLP pruned at initialisation ({levels(base.init_sparsities)})",
    )
    add("--epochs", type=int, help=f"epochs of the MLP's training ({base.epochs})")
    add("--conv-epochs", type=int, help=f"epochs of the convolutional network's training ({base.conv_epochs})")
    add("--fine-tuning", type=int, metavar="EPOCHS", help=f"epochs of fine-tuning after pruning ({base.fine_tuning})")
    add("--workers", type=int, default=2, help="number of processes; each runs one network and seed at a time (2)")
    add("--output", type=Path, default=Path("runs/saliencies"), help="output folder (runs/saliencies)")
    return parser


def main(arguments: Sequence[str] | None = None) -> Figures:
    """Run the comparison, print and write the results, and return them."""
    parser = make_parser()
    options = vars(parser.parse_args(arguments))
    workers, output, quick = (options.pop(name) for name in ("workers", "output", "quick"))
    chosen = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items() if v is not None}
    try:
        settings = replace(QUICK if quick else Settings(), **chosen)
        if workers < 1:
            raise ValueError(f"--workers should be at least 1, but given {workers}")
        output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    start = time.perf_counter()
    figures = Figures(run_all(settings, workers), settings, time.perf_counter() - start)
    report(figures, output)
    return figures


if __name__ == "__main__":
    main()
