"""Quality of unstructured pruning at equal sparsity: how the sparsity is divided over the layers.

A CNN on scikit-learn's digits and a small Llama on this repository's documentation are trained, pruned in one shot with
each division, and trained a little more. ``greedy`` and ``search`` are those of ``measure.search_sparsities``, with the
loss on training batches.

    python benchmarks/sparsities.py --seeds 8 --nets cnn --sparsity 0.6
    python benchmarks/sparsities.py --seeds 8 --nets llama --sparsity 0.8
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ignite_prune import PruneHandler, allocation, measure, prune_model
from ranking import TASKS, Task, train

RULES: dict[str, allocation.Allocation] = {
    "Uniform": allocation.Uniform(),
    "ERK": allocation.ERK(),
    "LAMP": allocation.LAMP(),
    "Global": allocation.Global(),
}


def found_by(task: Task, model: nn.Module, sparsity: float, evaluations: int, path: str) -> list[dict[str, Any]]:
    seen = task.batches(8, torch.Generator().manual_seed(2))

    @torch.no_grad()
    def loss(net: nn.Module) -> float:
        return float(sum(task.loss(net, batch) for batch in seen)) / len(seen)

    options: dict[str, Any] = {"sparsity": sparsity, "evaluations": evaluations, "higher_is_better": False}
    return measure.search_sparsities(model, loss, sparsities=[0.5, 0.7, 0.8, 0.9, 0.95], path=path, **options).groups


def errors(task: Task, model: nn.Module, params: Any, options: dict[str, Any]) -> tuple[float, float]:
    """Return the error after pruning a copy of the model in one shot, and after training it a little more."""
    smaller = copy.deepcopy(model)
    masks = prune_model(smaller, params, **options)
    at_once = task.error(smaller)
    optimizer = torch.optim.AdamW(smaller.parameters(), lr=task.rate / 3, weight_decay=0.01)
    PruneHandler(smaller, optimizer, masks=masks)
    smaller.train()
    for batch in task.batches(task.more, torch.Generator().manual_seed(1)):
        optimizer.zero_grad()
        task.loss(smaller, batch).backward()
        optimizer.step()
    smaller.eval()
    return at_once, task.error(smaller)


def compare(name: str, seeds: Sequence[int], sparsities: Sequence[float], evaluations: int, folder: str) -> None:
    """Print a table of one net: the mean error over seeds, in one shot and after more training."""
    task, found = TASKS[name](), dict[tuple[float, str], list[tuple[float, float]]]()
    for seed in seeds:
        torch.manual_seed(seed)
        model, generator = task.build(), torch.Generator().manual_seed(seed)
        train(task, model, task.steps, generator, task.rate)
        found.setdefault((0.0, "dense"), []).append((task.error(model),) * 2)
        for sparsity in sparsities:
            for rule, each in RULES.items():
                options = {"sparsity": sparsity, "allocation": each}
                found.setdefault((sparsity, rule), []).append(errors(task, model, None, options))
            for rule, count in (("greedy", 0), ("search", evaluations)):
                groups = found_by(task, model, sparsity, count, f"{folder}/{name}-{seed}.json")
                found.setdefault((sparsity, rule), []).append(errors(task, model, groups, {}))
        sys.stderr.write(f"{name}, seed {seed} done\n")
    for (sparsity, rule), values in found.items():
        shown = []
        for column, rivals in zip(zip(*values), zip(*(zip(*found[at, who]) for at, who in found if at == sparsity))):
            spread = statistics.stdev(column) if len(column) > 1 else 0.0
            wins = sum(value == min(others) for value, others in zip(column, zip(*rivals)))
            shown.append(f"{statistics.mean(column):8.2f} ± {spread:6.2f}, best in {wins}")
        sys.stdout.write(f"{name:6} {sparsity:.2f} {rule:8} {'   '.join(shown)}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--nets", nargs="+", default=["cnn", "llama"], choices=list(TASKS))
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8])
    parser.add_argument("--evaluations", type=int, default=60)
    given = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.nets:
            compare(name, range(given.seeds), given.sparsity, given.evaluations, folder)


if __name__ == "__main__":
    main()
