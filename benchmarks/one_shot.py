"""Does the published order pay? Calibration on the pruned blocks before a block, compared with the dense ones.

The small language model of examples/language_model.py is trained with several seeds and pruned in one shot by both
orders; paired differences of the perplexity on held-out text tell which is better.

    python benchmarks/one_shot.py --seeds 5 --steps 1500
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ignite_prune import pattern, prune_blocks, repair, saliency

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from language_model import perplexity, sequences, trained

METHODS: dict[str, dict[str, Any]] = {
    "Wanda": {"saliency": saliency.Wanda()},
    "SparseGPT": {"saliency": saliency.SparseGPT(), "repair": repair.SparseGPT()},
}
TARGETS: dict[str, dict[str, Any]] = {
    "60 %": {"sparsity": 0.6},
    "2:4": {"sparsity": 0.5, "pattern": pattern.NofM(keep=2, of=4)},
    "70 %": {"sparsity": 0.7},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--sequences", type=int, default=256, help="of calibration")
    parser.add_argument("--blocks", type=int, default=6, help="of the model")
    parser.add_argument("--width", type=int, default=64, help="of the model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, dense = Console(), []
    found: dict[tuple[str, str, bool], list[float]] = {}
    for seed in range(options.seeds):
        model = trained(seed, options.steps, width=options.width, blocks=options.blocks)
        dense.append(perplexity(model))
        data = list(sequences(options.sequences, torch.Generator().manual_seed(seed + 1000))[:, :-1].split(8))
        for target, given in TARGETS.items():
            for method, also in METHODS.items():
                for sequential in (True, False):
                    copied = copy.deepcopy(model)
                    prune_blocks(copied, "blocks.*", data=data, sequential=sequential, **given, **also)
                    found.setdefault((target, method, sequential), []).append(perplexity(copied))
        console.print(f"seed {seed}: dense {dense[-1]:.2f}", {key: round(each[-1], 3) for key, each in found.items()})
    console.print(_table(dense, found))


def _table(dense: list[float], found: dict[tuple[str, str, bool], list[float]]) -> Table:
    table = Table(title=f"Perplexity on held-out text; dense {statistics.mean(dense):.3f}")
    for column in ("target", "method", "published order", "dense inputs", "better by", "seeds in which it is better"):
        table.add_column(column, justify="left" if column in ("target", "method") else "right")
    for (target, method, sequential), ours in found.items():
        if sequential:
            theirs = found[target, method, False]
            gains = [b - a for a, b in zip(ours, theirs)]
            spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
            table.add_row(
                target,
                method,
                f"{statistics.mean(ours):.3f}",
                f"{statistics.mean(theirs):.3f}",
                f"{statistics.mean(gains):.3f} ± {spread:.3f}",
                f"{sum(gain > 0 for gain in gains)} of {len(gains)}",
            )
    return table


if __name__ == "__main__":
    main()
