"""Tasks of the comparison of sparse training: handwritten digits, and characters of Python's standard library."""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from compare_nets import load_data, make_mlp
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
CONTEXT, WIDTH, CHARACTERS = 12, 16, 97  # printable ASCII, line feed, and one class for all other characters
TEXT = 600_000


@dataclass(frozen=True)
class Task:
    """A training task.

    Args:
        name: name in tables and plots.
        measure: name of the metric that ``evaluate`` returns.
        more_is_better: whether a larger metric is better.
        make: creates the model, initialised from torch's default generator.
        batches: maps ``(seed, iterations)`` to training batches.
        evaluate: maps a model and the seed of its data to the metric.
        lr: Adam's learning rate.
        every: number of iterations between mask updates.
        drop: fraction of the connections exchanged at the first update.
        iterations: number of iterations of a training.
    """

    name: str
    measure: str
    more_is_better: bool
    make: Callable[[], nn.Module]
    batches: Callable[[int, int], Iterator[Batch]]
    evaluate: Callable[[nn.Module, int], float]
    lr: float
    every: int
    drop: float
    iterations: int


def digit_batches(seed: int, iterations: int) -> Iterator[Batch]:
    loader, left = load_data(seed, flat=True).loader(seed), iterations
    while left:
        for batch, _ in zip(loader, range(left)):
            left -= 1
            yield batch


@torch.no_grad()
def digit_accuracy(model: nn.Module, seed: int) -> float:
    ((images, labels),) = load_data(seed, flat=True).test
    return 100 * float((model(images).argmax(1) == labels).float().mean())


def make_language_model() -> nn.Module:
    """Return a network that predicts a character from the twelve before it: 12·16 - 384 - 192 - 97."""
    return nn.Sequential(
        nn.Embedding(CHARACTERS, WIDTH),
        nn.Flatten(),
        nn.Linear(CONTEXT * WIDTH, 384),
        nn.ReLU(),
        nn.Linear(384, 192),
        nn.ReLU(),
        nn.Linear(192, CHARACTERS),
    )


@cache
def text() -> Tensor:
    """Return Python's standard library as character indices; the files depend only on the Python version."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    read, size = [], 0
    for file in files:
        read.append(file.read_bytes())
        size += len(read[-1])
        if size >= TEXT:
            break
    raw = torch.frombuffer(bytearray(b"".join(read)), dtype=torch.uint8).long()
    printable = (raw >= 32) & (raw < 127)
    return torch.where(printable, raw - 32, torch.where(raw == ord("\n"), 95, 96))


def windows(characters: Tensor, starts: Tensor) -> Batch:
    picked = characters[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)]
    return picked[:, :CONTEXT], picked[:, CONTEXT]


def text_batches(seed: int, iterations: int) -> Iterator[Batch]:
    learnt = text()[: len(text()) * 9 // 10]
    dice = torch.Generator().manual_seed(seed)
    for _ in range(iterations):
        yield windows(learnt, torch.randint(len(learnt) - CONTEXT, (128,), generator=dice))


@torch.no_grad()
def bits_per_character(model: nn.Module, seed: int) -> float:
    unseen = text()[len(text()) * 9 // 10 :]
    inputs, targets = windows(unseen, torch.arange(0, len(unseen) - CONTEXT, 4))
    return float(nn.functional.cross_entropy(model(inputs), targets)) / math.log(2)


DIGITS = Task(
    "digits", "accuracy (%)", True, make_mlp, digit_batches, digit_accuracy, lr=3e-3, every=10, drop=0.5, iterations=600
)
LANGUAGE = Task(
    "language",
    "bits per character",
    False,
    make_language_model,
    text_batches,
    bits_per_character,
    lr=3e-3,
    every=20,
    drop=0.5,
    iterations=800,
)
