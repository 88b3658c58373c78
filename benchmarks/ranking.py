"""Quality of structured pruning at equal FLOPs: how scores of unlike groups of units are ranked.

Four kinds of small nets are trained, pruned to a fraction of their FLOPs with each rule, and trained a little more:
a CNN with depthwise convolutions and a vision transformer on scikit-learn's digits, transformers' BERT on a retrieval
task, and a Llama with grouped queries on this repository's documentation, byte by byte.

    python benchmarks/ranking.py --seeds 8 --nets cnn vit bert llama
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ignite_prune import allocation, pattern, prune_model, trace
from ignite_prune.structure import Flops, Structure
from structured_peer import by_torch_pruning

Batch = tuple[Any, Tensor]
FRACTIONS = (0.5, 0.7)


@dataclass(frozen=True)
class Task:
    """A net with its data; ``loss`` takes a model and a batch, ``error`` (lower is better) the model."""

    build: Callable[[], nn.Module]
    batches: Callable[[int, torch.Generator], list[Batch]]
    loss: Callable[[nn.Module, Batch], Tensor]
    error: Callable[[nn.Module], float]
    steps: int
    more: int
    rate: float = 3e-3


# Nets


class Mixing(nn.Module):
    """An inverted residual block: 1×1, depthwise 3×3, 1×1."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]


def cnn() -> nn.Module:
    stem = (nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    down = (nn.Conv2d(24, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(*stem, Mixing(24, 48), Mixing(24, 48), *down, Mixing(32, 64), Mixing(32, 64), *head)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            **{"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10, "hidden_size": 48},
            **{"num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 96},
        )
    )


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            **{"vocab_size": 72, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8},
            **{"intermediate_size": 128, "max_position_embeddings": 16, "num_labels": 8, "hidden_dropout_prob": 0.0},
            attention_probs_dropout_prob=0.0,
        )
    )


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            **{"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8},
            **{"num_key_value_heads": 4, "intermediate_size": 160, "max_position_embeddings": 64, "use_cache": False},
        )
    )


# Data


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(data.target)


def retrieval(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return sequences of a key and 8 tokens, each a pair of a key and a value, and the values of the first keys."""
    keys = torch.stack([torch.randperm(8, generator=generator) for _ in range(count)])
    values, asked = torch.randint(8, (count, 8), generator=generator), torch.randint(8, (count,), generator=generator)
    tokens = torch.cat([asked.unsqueeze(1) + 64, keys * 8 + values], dim=1)
    return tokens, values[keys == asked.unsqueeze(1)]


def text() -> Tensor:
    pages = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    whole = "".join(page.read_text() for page in pages).encode("ascii", "ignore")
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8).long()


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    found = model(inputs)
    return found if isinstance(found, Tensor) else found.logits


def classify(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs(model, batch[0]), batch[1])


def follow(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs(model, batch[0]).flatten(0, 1), batch[1].flatten())


def mistakes(x: Tensor, y: Tensor) -> Callable[[nn.Module], float]:
    @torch.no_grad()
    def percent(model: nn.Module) -> float:
        return 100 * float((outputs(model, x).argmax(1) != y).float().mean())

    return percent


def of_digits(build: Callable[[], nn.Module], steps: int) -> Task:
    x, y = digits()
    x, y, seen, right = x[:1200], y[:1200], x[1200:], y[1200:]

    def batches(count: int, generator: torch.Generator) -> list[Batch]:
        rows = [torch.randint(len(x), (64,), generator=generator) for _ in range(count)]
        return [(x[each], y[each]) for each in rows]

    return Task(build, batches, classify, mistakes(seen, right), steps, 30)


def of_pairs() -> Task:
    def batches(count: int, generator: torch.Generator) -> list[Batch]:
        return [retrieval(64, generator) for _ in range(count)]

    test = retrieval(1000, torch.Generator().manual_seed(99))
    return Task(bert, batches, classify, mistakes(*test), 700, 40, 1e-3)


def of_text() -> Task:
    whole = text()
    split, length = int(0.9 * len(whole)), 48

    def pieces(start: Tensor) -> Batch:
        rows = torch.stack([whole[i : i + length + 1] for i in start.tolist()])
        return rows[:, :-1], rows[:, 1:]

    def batches(count: int, generator: torch.Generator) -> list[Batch]:
        return [pieces(torch.randint(split - length - 1, (32,), generator=generator)) for _ in range(count)]

    test = pieces(torch.arange(split, len(whole) - length - 1, length))

    @torch.no_grad()
    def perplexity(model: nn.Module) -> float:
        return float(follow(model, test).exp())

    return Task(llama, batches, follow, perplexity, 500, 40)


TASKS: dict[str, Callable[[], Task]] = {
    "cnn": lambda: of_digits(cnn, 200),
    "vit": lambda: of_digits(vit, 400),
    "bert": of_pairs,
    "llama": of_text,
}


def train(task: Task, model: nn.Module, steps: int, generator: torch.Generator, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for batch in task.batches(steps, generator):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
        plan.step()
    model.eval()


# Rules

NOT_BY_PEER = ("llama",)  # it does not end within minutes, of the RMSNorms' parameters

RULES: dict[str, dict[str, Any]] = {
    "plain norms, Global": {"pattern": pattern.Coupled(normalise=None)},
    "by kind, Global (default)": {},
    "by group, Global": {"pattern": pattern.Coupled(normalise="group")},
    "Isomorphic": {"allocation": allocation.Isomorphic()},
    "Uniform": {"allocation": allocation.Uniform()},
    "LAMP": {"allocation": allocation.LAMP()},
}


def retrained(task: Task, model: nn.Module, masks: dict[str, Tensor]) -> float:
    """Train a pruned model a little more, and return its error."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.rate / 3, weight_decay=0.01)
    parameters = dict(model.named_parameters())
    model.train()
    for batch in task.batches(task.more, torch.Generator().manual_seed(1)):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
        with torch.no_grad():
            for name, mask in masks.items():
                parameters[name].mul_(mask)
    model.eval()
    return task.error(model)


def pruned(task: Task, model: nn.Module, structure: Structure, fraction: float, rule: dict[str, Any]) -> float:
    """Prune a copy of the model to a fraction of its FLOPs, train it a little more, and return its error."""
    smaller = copy.deepcopy(model)
    masks = prune_model(smaller, sparsity=fraction, structure=structure, target=Flops(), **rule)
    return retrained(task, smaller, dict(masks))


def errors(name: str, seed: int) -> Iterator[tuple[str, float, float]]:
    """Yield the rule, the fraction of the FLOPs that goes, and the error, of one net trained with one seed."""
    task = TASKS[name]()
    torch.manual_seed(seed)
    model, generator = task.build(), torch.Generator().manual_seed(seed)
    train(task, model, task.steps, generator, task.rate)
    inputs = task.batches(1, generator)[0][0][:1]
    structure = trace(model, inputs)
    yield "dense", 0.0, task.error(model)
    for fraction in FRACTIONS:
        for rule, options in RULES.items():
            yield rule, fraction, pruned(task, model, structure, fraction, options)
        if name not in NOT_BY_PEER:
            yield "torch-pruning", fraction, retrained(task, by_torch_pruning(model, inputs, fraction), {})


def table(found: dict[tuple[str, str, float], list[float]]) -> str:
    """Return the means over seeds, with the number of seeds."""
    lines = []
    for (name, rule, fraction), each in sorted(found.items()):
        spread = statistics.stdev(each) if len(each) > 1 else 0.0
        lines.append(f"{name:6} {rule:28} {fraction:.1f} {statistics.mean(each):7.2f} ± {spread:.2f} ({len(each)})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--nets", nargs="+", default=list(TASKS), choices=list(TASKS))
    given = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    found: dict[tuple[str, str, float], list[float]] = {}
    for seed in range(given.seeds):
        for name in given.nets:
            for rule, fraction, error in errors(name, seed):
                found.setdefault((name, rule, fraction), []).append(error)
            sys.stdout.write(f"after {name} with seed {seed}\n{table(found)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
