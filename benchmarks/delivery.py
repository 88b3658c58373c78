"""Table of docs/delivery.md, dense over sparse time of one layer: ``python benchmarks/delivery.py``."""

import statistics

import torch
from torch import nn

from ignite_prune import prune_model
from ignite_prune._utils.interleaved import interleaved
from ignite_prune.export import SparseLinear

RUNS = 5


@torch.no_grad()
def gain(outputs: int, inputs: int, batch: int, sparsity: float) -> float:
    """Return the median of dense time / sparse time."""
    layer = nn.Linear(inputs, outputs).eval()
    prune_model(layer, sparsity=sparsity)
    sparse, x = SparseLinear(layer), torch.randn(batch, inputs)
    assert (sparse(x) - layer(x)).abs().max() <= 1e-5 * layer(x).abs().max()
    times = [interleaved([lambda: layer(x), lambda: sparse(x)]) for _ in range(RUNS)]
    return statistics.median(dense / other for dense, other in times)


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sparsities = (0.5, 0.8, 0.9, 0.95, 0.98)
    print("| layer, batch |", " | ".join(f"{each:.0%}" for each in sparsities), "|")
    print("|---" * (len(sparsities) + 1) + "|")
    for outputs, inputs in ((1024, 1024), (4096, 1024), (1024, 4096)):
        for batch in (32, 1):
            found = [gain(outputs, inputs, batch, each) for each in sparsities]
            print(f"| {outputs}×{inputs}, {batch} |", " | ".join(f"{each:.2f}" for each in found), "|")


if __name__ == "__main__":
    main()
