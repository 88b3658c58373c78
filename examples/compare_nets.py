"""Data, networks and training of the saliency comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from ignite.engine import Engine, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from ignite_prune import PruneHandler

BATCH = 64
LOSS = nn.CrossEntropyLoss()

Batches = list[tuple[Tensor, Tensor]]
Listen = Callable[[nn.Module, Optimizer, Engine], None]


@dataclass(frozen=True)
class Data:
    """Training digits in batches, also used as calibration data, and the test digits as one batch."""

    train: Batches
    test: Batches

    def loader(self, seed: int) -> DataLoader:
        """Return the training digits in an order that depends only on ``seed``."""
        images, labels = (torch.cat(parts) for parts in zip(*self.train))
        order = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(images, labels), BATCH, shuffle=True, generator=order)


def load_data(seed: int, flat: bool) -> Data:
    """Return a stratified 70/30 split, standardised per pixel by the training digits, as rows of 64 or as images."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.3, stratify=digits.target, random_state=seed)
    spread = images[train].std(0)
    images = (images - images[train].mean(0)) / torch.where(spread > 0, spread, 1)  # some pixels are always blank
    images = images if flat else images.view(-1, 1, 8, 8)
    batches = list(zip(images[train].split(BATCH), labels[train].split(BATCH)))
    return Data(batches, [(images[test], labels[test])])


def make_mlp() -> nn.Module:
    """Return an MLP 64-300-100-10."""
    return nn.Sequential(
        nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )  # fmt: skip


def make_conv() -> nn.Module:
    """Return a network of three convolutions (32, 64 and 64 filters) with BatchNorm, and a linear layer."""
    layers: list[nn.Module] = []
    for inputs, outputs, halve in ((1, 32, False), (32, 64, True), (64, 64, True)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if halve else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def train(model: nn.Module, data: Data, epochs: int, seed: int, listen: Listen | None = None) -> None:
    """Train with Adam; ``listen`` can attach handlers first."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer = create_supervised_trainer(model, optimizer, LOSS)
    if listen is not None:
        listen(model, optimizer, trainer)
    trainer.run(data.loader(seed), max_epochs=epochs)


def fine_tune(model: nn.Module, masks: Mapping[str, Tensor], data: Data, epochs: int, seed: int) -> None:
    """Fine-tune a pruned model with fixed masks."""

    def keep_zeros(model: nn.Module, optimizer: Optimizer, trainer: Engine) -> None:
        PruneHandler(model, optimizer, list(masks), masks=masks)

    train(model, data, epochs, seed, keep_zeros)


def accuracy(model: nn.Module, data: Data) -> float:
    """Return the fraction of test digits that are classified correctly."""
    evaluator = create_supervised_evaluator(model, {"accuracy": Accuracy()})
    return float(evaluator.run(data.test).metrics["accuracy"])
