"""Train on handwritten digits, prune, slice, export, compress and measure: size × speed × accuracy of each way.

A dense network is trained, and copies of it are trained on while they are pruned: to 90 % unstructured, to 2:4, and by
whole neurons, which are sliced off. Each is saved, opened again and measured with the test digits as one batch:

    python examples/deploy_digits.py
    python examples/deploy_digits.py --quick --output runs/deploy
"""

from __future__ import annotations

import argparse
import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from command_line import Parser
from ignite.engine import Events, create_supervised_trainer
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ignite_prune import PruneHandler, allocation, export, load_shrunk, measure, pattern, schedule, shrink, trace
from ignite_prune.report import report
from ignite_prune.structure import shrunk_state

BATCH = 32  # of the latencies


@dataclass(frozen=True)
class Settings:
    """Settings of the example."""

    width: int = 1024
    epochs: int = 10
    seed: int = 0
    onnx: bool = True  # a file for onnxruntime, and the report page with every engine

    def __post_init__(self) -> None:
        for name, (low, high) in {"width": (32, 8192), "epochs": (2, 999), "seed": (0, 2**32 - 1)}.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"--{name} should be from {low} to {high}, but given {value}")


QUICK = Settings(width=256, epochs=3, onnx=False)


@dataclass(frozen=True)
class Row:
    """One way to deliver the network."""

    name: str
    bytes: int
    model: nn.Module
    accuracy: float
    note: str


class Data:
    """Batches of training digits, and all test digits."""

    def __init__(self, seed: int) -> None:
        digits = load_digits()
        images, labels = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)
        train, test = train_test_split(range(len(labels)), test_size=0.25, stratify=digits.target, random_state=seed)
        images = (images - images[train].mean()) / images[train].std()
        self.train = DataLoader(TensorDataset(images[train], labels[train]), 64, shuffle=True, drop_last=True)
        self.images, self.labels = images[test], labels[test]

    @torch.no_grad()
    def accuracy(self, model: Callable[[Tensor], Tensor]) -> float:
        return float((model(self.images).argmax(1) == self.labels).float().mean())


def build(width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)),
    )


def train(model: nn.Module, data: Data, epochs: int, **pruning: Any) -> tuple[nn.Module, PruneHandler | None]:
    """Train a model; with settings of a PruneHandler, prune it on the way."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer = create_supervised_trainer(model, optimizer, lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1))
    pruner = PruneHandler(model, optimizer, **pruning) if pruning else None
    if pruner is not None:
        pruner.attach(trainer, Events.EPOCH_STARTED)
    trainer.run(data.train, max_epochs=epochs)
    if pruner is not None:
        pruner.finalize()
    return model.eval(), pruner


def size_of(state: Any) -> int:
    file = io.BytesIO()
    torch.save(state, file)
    return len(file.getvalue())


def int8(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated; its successor torchao is a package of its own
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def row(name: str, model: nn.Module, size: int, data: Data, note: str = "") -> Row:
    return Row(name, size, model, data.accuracy(model), note)


def seconds_of(rows: list[Row], x: Tensor, rounds: int = 5) -> list[float]:
    """Return the smallest latency of each model; they take turns, so that a busy machine slows all of them."""
    found = [[measure.latency(each.model, x, min_run_time=0.05).seconds for each in rows] for _ in range(rounds)]
    return [min(column) for column in zip(*found)]


def deliver(settings: Settings, data: Data, folder: Path, console: Console) -> list[Row]:
    half = max(settings.epochs // 2, 1)
    x = data.images[:BATCH]
    torch.manual_seed(settings.seed)
    dense, _ = train(build(settings.width), data, settings.epochs)
    rows = [row("dense", dense, size_of(dense.state_dict()), data)]
    console.print(f"trained the dense network: {rows[0].accuracy:.2%}")

    ramp = {"schedule": schedule.Polynomial(0.9, 1, half), "allocation": allocation.Uniform()}
    sparse, pruner = train(copy.deepcopy(dense), data, settings.epochs, **ramp)
    file = export.save(sparse, folder / "sparse.safetensors", pruner.masks, overwrite=True)
    opened = export.load(build(settings.width), file).eval()
    found = export.sparse_inference(opened, x)
    rows.append(row("90 %, CSR layers", opened, file.stat().st_size, data, f"{len(found.replaced)} layers sparse"))
    report(
        sparse,
        folder / "report.html",
        title="90 % of the digits' network",
        example_inputs=x if settings.onnx else None,
    )

    options = {"pattern": pattern.NofM(2, 4), "schedule": schedule.OneShot(0.5, 1), "exclude": "6.weight"}
    grouped, pruner = train(copy.deepcopy(dense), data, settings.epochs, **options)
    file = export.save(grouped, folder / "2-4.safetensors", pruner.masks, overwrite=True)
    rows.append(row("2:4", grouped, file.stat().st_size, data, "faster with CUDA, float16"))

    structure = trace(dense, x)
    whole = copy.deepcopy(dense)
    options = {**ramp, "schedule": schedule.Polynomial(0.75, 1, half), "structure": trace(whole, x)}
    whole, pruner = train(whole, data, settings.epochs, **options)
    found = shrink(whole, structure.masks(structure.kept(pruner.masks)), x)
    torch.save(shrunk_state(whole, found.indices), folder / "sliced.pt")
    small = load_shrunk(build(settings.width), folder / "sliced.pt").eval()
    rows.append(row("sliced by 75 %", small, size_of(small.state_dict()), data))
    if settings.onnx:
        export.to_onnx(small, x, folder / "sliced.onnx", overwrite=True)

    for name, model in (("int8", dense), ("sliced, int8", small)):
        quantized = int8(model)
        rows.append(row(name, quantized, size_of(quantized.state_dict()), data, "dynamic, torch.ao"))
    return rows


def table(rows: list[Row], seconds: list[float]) -> Table:
    shown = Table("", title=f"batch {BATCH}, {torch.get_num_threads()} thread")
    for heading in ("KiB", "of dense", "latency", "speed-up", "accuracy"):
        shown.add_column(heading, justify="right")
    shown.add_column("")
    for each, taken in zip(rows, seconds):
        size, speed = f"{each.bytes / 1024:,.0f}", f"{taken * 1e3:.2f} ms"
        ratios = f"{each.bytes / rows[0].bytes:.3f}", f"{seconds[0] / taken:.2f}"
        shown.add_row(each.name, size, ratios[0], speed, ratios[1], f"{each.accuracy:.2%}", each.note)
    return shown


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, help="neurons of the three hidden layers (1024)")
    parser.add_argument("--epochs", type=int, help="epochs of each training (10)")
    parser.add_argument("--seed", type=int, help="seed of weights and split (0)")
    parser.add_argument("--quick", action="store_true", help="a narrow network and 3 epochs: seconds, no good figures")
    parser.add_argument("--output", type=Path, default=Path("runs/deploy"), help="folder of the files (runs/deploy)")
    options = vars(parser.parse_args())
    folder, quick = options.pop("output"), options.pop("quick")
    settings = parser.settle(QUICK if quick else Settings(), options, folder)
    torch.set_num_threads(1)
    console = Console(highlight=False, width=100)
    data = Data(settings.seed)
    rows = deliver(settings, data, folder, console)
    console.print(table(rows, seconds_of(rows, data.images[:BATCH])))
    for path in sorted(folder.iterdir()):
        console.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    main()
