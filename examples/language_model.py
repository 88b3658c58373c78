"""A small transformer that predicts the characters of Python's standard library, and how well it does."""

from __future__ import annotations

import math
import sysconfig
from functools import cache
from pathlib import Path

import torch
from ignite.engine import Engine, create_supervised_trainer
from ignite.metrics import RunningAverage
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

CHARACTERS, CONTEXT, TEXT = 97, 64, 600_000  # printable ASCII, line feed, one for all others
HELD_OUT = 60_000


class Block(nn.Module):
    """A transformer's block: attention and an MLP, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        parts = (
            each(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        x = x + self.out(scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.mlp_norm(x))))


class LanguageModel(nn.Module):
    """Characters in, the logits of the next ones out."""

    def __init__(self, width: int = 96, heads: int = 4, blocks: int = 4) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(CHARACTERS, width), nn.Embedding(CONTEXT, width)
        self.blocks, self.norm = nn.ModuleList(Block(width, heads) for _ in range(blocks)), nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.characters(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@cache
def text() -> Tensor:
    """Return characters of the standard library; the files depend on the Python version alone."""
    raw = b""
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        raw += file.read_bytes()
        if len(raw) >= TEXT:
            break
    codes = torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()
    printable = (codes >= 32) & (codes < 127)
    return torch.where(printable, codes - 32, torch.where(codes == ord("\n"), 95, 96))


def sequences(number: int, generator: torch.Generator) -> Tensor:
    """Return random pieces of the training text, ``(number, CONTEXT + 1)``."""
    starts = torch.randint(len(text()) - HELD_OUT - CONTEXT - 1, (number,), generator=generator)
    return text()[starts[:, None] + torch.arange(CONTEXT + 1)]


def next_characters(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def trainer_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Engine:
    """Return a trainer with the running average of its loss."""
    trainer = create_supervised_trainer(model, optimizer, next_characters)
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    return trainer


def trained(seed: int, steps: int, **shape: int) -> LanguageModel:
    """Return a trained model in eval mode."""
    torch.manual_seed(seed)
    model, generator = LanguageModel(**shape), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    pieces = (sequences(16, generator) for _ in range(steps))
    trainer_of(model, optimizer).run(((each[:, :-1], each[:, 1:]) for each in pieces), epoch_length=steps)
    return model.eval()


@torch.no_grad()
def perplexity(model: nn.Module, pieces: int = 400) -> float:
    """Return the perplexity on text that training and calibration never see."""
    held = text()[-HELD_OUT:]
    held = held[: len(held) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)[:pieces]
    losses = [next_characters(model(part[:, :-1]), part[:, 1:]).item() for part in held.split(100)]
    return math.exp(sum(losses) / len(losses))
