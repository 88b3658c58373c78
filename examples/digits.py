"""Handwritten digits, trained twice from the same start: dense, and pruned to 90 % while it trains.

Each run gets a folder of its own (runs/digits/run-01, run-02, ...) with TensorBoard curves and mask pictures,
checkpoints, the sparse model and a picture. A run that was killed goes on from a checkpoint and ends with the very
numbers it would have ended with:

    python examples/digits.py
    python examples/digits.py --resume runs/digits/run-01/checkpoint_12.pt
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import matplotlib

matplotlib.use("agg")  # draws to files, with or without a screen

import matplotlib.pyplot as plt
import torch
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, PiecewiseLinear, ProgressBar
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.metrics import Accuracy, Average
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ignite_prune import MaskStore, PruneHandler, allocation, saliency, schedule
from ignite_prune.loggers import MaskHandler
from ignite_prune.loggers.picture import mask_picture

TRAINING_DIGITS = 1347  # three quarters of 1797
DENSE, SPARSE, FAINT = "#0072B2", "#D55E00", "#E9A97F"  # told apart in every kind of colour vision

SCHEDULES: dict[str, Callable[[Settings], schedule.Schedule]] = {
    "polynomial": lambda s: schedule.Polynomial(s.sparsity, s.begin, s.end),
    "linear": lambda s: schedule.Linear(s.sparsity, s.begin, s.end),
    "cosine": lambda s: schedule.Cosine(s.sparsity, s.begin, s.end),
    "exponential": lambda s: schedule.Exponential(s.sparsity, s.begin, s.end),
    "one-cycle": lambda s: schedule.OneCycle(s.sparsity, s.begin, s.end),
    "one-shot": lambda s: schedule.OneShot(s.sparsity, at=s.end),
}
ALLOCATIONS: dict[str, allocation.Allocation] = {
    "global": allocation.Global(),
    "uniform": allocation.Uniform(),
    "erk": allocation.ERK(),
    "lamp": allocation.LAMP(),
}
SALIENCIES: dict[str, saliency.Saliency] = {"magnitude": saliency.Magnitude(), "random": saliency.Random()}

History = list[dict[str, Any]]  # one entry an epoch: accuracy, loss and, where something prunes, sparsity by layer


@dataclass(frozen=True)
class Settings:
    """What decides a run's outcome; plain values, so that they ride in its checkpoints."""

    sparsity: float
    schedule: str
    begin: int
    end: int
    allocation: str
    saliency: str
    epochs: int
    batch_size: int
    lr: float
    seed: int

    def __post_init__(self) -> None:
        bounds = {"epochs": (1, 999), "batch_size": (1, TRAINING_DIGITS), "lr": (1e-6, 1), "seed": (0, 2**32 - 1)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"--{name.replace('_', '-')} should be from {low} to {high}, but given {value}")
        if not 0 <= self.begin <= self.end <= self.epochs:
            raise ValueError(
                f"--begin, --end and --epochs should rise, but given {self.begin}, {self.end} and {self.epochs}"
            )
        SCHEDULES[self.schedule](self)  # refuses a bad sparsity in its own words


@dataclass(frozen=True)
class Data:
    """Batches that come in a new order each epoch, and the whole test set as one batch."""

    train: DataLoader
    test: list[tuple[Tensor, Tensor]]


def load_data(settings: Settings) -> Data:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(
        range(len(labels)), train_size=TRAINING_DIGITS, stratify=digits.target, random_state=settings.seed
    )
    images = (images - images[train].mean()) / images[train].std()  # the test digits stay unseen
    batches = DataLoader(
        TensorDataset(images[train], labels[train]), settings.batch_size, shuffle=True, drop_last=True
    )
    return Data(batches, [(images[test], labels[test])])


def make_model() -> nn.Module:
    """Return a net for 8×8 pixels: three convolutions and two linear layers, 73 thousand parameters."""
    layers: dict[str, nn.Module] = {}
    for index, (inputs, outputs, halve) in enumerate([(1, 32, False), (32, 64, True), (64, 64, True)], start=1):
        layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"norm{index}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{index}"] = nn.ReLU()
        if halve:
            layers[f"pool{index}"] = nn.MaxPool2d(2)
    layers |= {"flat": nn.Flatten(), "fc1": nn.Linear(256, 64), "relu": nn.ReLU(), "fc2": nn.Linear(64, 10)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def make_training(settings: Settings, data: Data) -> dict[str, Any]:
    """Return model, optimizer, learning-rate scheduler and trainer: what a checkpoint holds, under its keys."""
    torch.manual_seed(settings.seed)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    # The order of the digits hangs on seed and epoch alone: dense, sparse and resumed runs all see the same batches.
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: torch.manual_seed(1000 * settings.seed + engine.state.epoch)
    )
    steps = settings.epochs * len(data.train)
    warm_up = [(0, settings.lr / 10), (max(1, steps // 5), settings.lr), (max(2, steps), settings.lr / 1000)]
    lr_scheduler = PiecewiseLinear(optimizer, "lr", warm_up)
    trainer.add_event_handler(Events.ITERATION_STARTED, lr_scheduler)
    Average().attach(trainer, "loss")
    return {"model": model, "optimizer": optimizer, "lr_scheduler": lr_scheduler, "trainer": trainer}


def record_history(trainer: Engine, model: nn.Module, data: Data) -> None:
    """Test after each epoch and keep what came out in ``trainer.state.history``."""
    evaluator = create_supervised_evaluator(model, {"accuracy": Accuracy()})
    trainer.state.history = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def record(engine: Engine) -> None:
        accuracy = evaluator.run(data.test).metrics["accuracy"]
        engine.state.metrics["accuracy"] = accuracy  # where the progress bar and TensorBoard look for it
        entry = {"accuracy": accuracy, "loss": float(engine.state.metrics["loss"])}
        if "sparsity" in engine.state.metrics:
            entry["sparsity"] = dict(engine.state.sparsity)
        engine.state.history.append(entry)


def show(trainer: Engine, title: str, names: list[str]) -> None:
    bar = ProgressBar(persist=True, desc=f"{title:6}", bar_format="{desc} {bar:24} epoch {n_fmt}/{total_fmt}{postfix}")
    bar.attach(trainer, names, event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED)


def log(trainer: Engine, folder: Path, pruner: PruneHandler | None) -> None:
    # What a killed run wrote after its last checkpoint is hidden, so that no curve doubles back.
    logger = TensorboardLogger(log_dir=str(folder), purge_step=trainer.state.epoch + 1)
    logger.attach_output_handler(trainer, Events.EPOCH_COMPLETED, tag="epoch", metric_names=["accuracy", "loss"])
    if pruner is not None:
        logger.attach(trainer, MaskHandler(pruner), Events.EPOCH_COMPLETED)
    trainer.add_event_handler(Events.COMPLETED, lambda _: logger.close())


def train_dense(settings: Settings, data: Data, folder: Path) -> History:
    training = make_training(settings, data)
    trainer = training["trainer"]
    record_history(trainer, training["model"], data)
    show(trainer, "dense", ["loss", "accuracy"])
    log(trainer, folder / "dense", None)
    return trainer.run(data.train, max_epochs=settings.epochs).history


def train_sparse(
    settings: Settings, data: Data, folder: Path, dense: History, checkpoint: dict[str, Any] | None
) -> tuple[nn.Module, PruneHandler, History]:
    training = make_training(settings, data)
    model, trainer = training["model"], training["trainer"]
    pruner = training["pruner"] = PruneHandler(
        model,
        training["optimizer"],
        schedule=SCHEDULES[settings.schedule](settings),
        saliency=SALIENCIES[settings.saliency],
        allocation=ALLOCATIONS[settings.allocation],
    )
    pruner.attach(trainer, Events.EPOCH_COMPLETED)
    record_history(trainer, model, data)
    trainer.state.settings, trainer.state.dense = asdict(settings), dense
    trainer.state_dict_user_keys.extend(["history", "settings", "dense"])
    if checkpoint is not None:
        Checkpoint.load_objects(to_load=training, checkpoint=checkpoint)
    show(trainer, "sparse", ["loss", "sparsity", "accuracy"])
    log(trainer, folder / "sparse", pruner)
    saver = Checkpoint(training, DiskSaver(str(folder), require_empty=False), n_saved=2)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    if trainer.state.epoch < settings.epochs:  # run() would start a finished run anew
        trainer.run(data.train, max_epochs=settings.epochs)
    pruner.finalize()
    return model, pruner, trainer.state.history


def make_table(model: nn.Module, masks: MaskStore) -> Table:
    table = Table("layer", *(dict(header=name, justify="right") for name in ()), title="What is left")
    for name in ("parameters", "kept", "sparsity"):
        table.add_column(name, justify="right")
    for name, sparsity in masks.sparsities().items():
        table.add_row(name, f"{masks[name].numel():,}", f"{masks.kept(name):,}", f"{sparsity:.2%}")
    pruned = sum(masks.kept(name) for name in masks)
    table.add_row("all pruned layers", f"{masks.numel:,}", f"{pruned:,}", f"{masks.sparsity:.2%}", style="bold")
    total, left = count(model)
    others = total - masks.numel
    table.add_row("biases and norms", f"{others:,}", f"{left - pruned:,}", style="dim")
    return table
