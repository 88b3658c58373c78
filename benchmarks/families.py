"""Table of docs/structured.md, every model family with half its units removed: ``python benchmarks/families.py``."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from ignite_prune import shrink, trace
from ignite_prune.structure.model_io import as_arguments
from tests.structure.test_transformers import FAMILIES
from tests.structure.zoo import MODELS

_ROUNDS = 15
IMAGE, TOKENS = torch.randn(1, 3, 224, 224), {"input_ids": torch.arange(64).view(1, -1), "use_cache": False}
LLAMA = {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 5504}
BIG = {
    "ResNet-50": lambda: (transformers.ResNetModel(transformers.ResNetConfig()), IMAGE),
    "ViT-B": lambda: (transformers.ViTModel(transformers.ViTConfig()), IMAGE),
    "GPT-2 small": lambda: (transformers.GPT2Model(transformers.GPT2Config()), TOKENS),
    "Llama, 2 layers": lambda: (
        transformers.LlamaModel(transformers.LlamaConfig(num_hidden_layers=2, **LLAMA)),
        TOKENS,
    ),
}


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print("| model | groups | parameters | FLOPs | latency, ms |")
    print("|---|---|---|---|---|")
    for name, build in {**MODELS, **FAMILIES}.items():
        torch.manual_seed(0)
        model, inputs = build()
        print(_row(name, model.double().eval(), inputs), flush=True)
    for name, build in BIG.items():
        model, inputs = build()
        print(_row(f"{name}, float32", model.eval(), inputs), flush=True)


def _row(name: str, model: nn.Module, inputs: Any) -> str:
    structure = trace(model, inputs)
    before = _latency(model, inputs)
    kept = {group.name: torch.arange(group.size) >= group.size // 2 for group in structure}
    report = shrink(model, structure.masks(kept), inputs, structure=structure)
    after = _latency(model, inputs)
    counts = [f"{old:,} → {new:,}" for old, new in (report.parameters, report.flops)]
    return f"| {name} | {len(structure)} | {' | '.join(counts)} | {before:.2f} → {after:.2f} |"


@torch.no_grad()
def _latency(model: nn.Module, inputs: Any) -> float:
    """Return the median time of a forward pass in milliseconds."""
    args, kwargs = as_arguments(model, inputs)
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        model(*args, **kwargs)
        times.append(time.perf_counter() - start)
    return statistics.median(times[_ROUNDS // 3 :]) * 1e3


if __name__ == "__main__":
    main()
