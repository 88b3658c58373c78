"""Structured pruning by torch-pruning (``pip install torch-pruning``) with its defaults, at a fraction of the FLOPs.

Its defaults prune every layer by the same ratio, by the group norm; the widths of residual connections and the sizes of
heads shrink too. The attributes that the models of transformers need are set as its examples do.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops(model: nn.Module, inputs: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops()


def by_torch_pruning(model: nn.Module, inputs: Any, fraction: float) -> nn.Module:
    """Return a smaller copy with ``1 - fraction`` of the FLOPs, or a little more, by bisection of the ratio."""
    allowed, low, high = (1 - fraction) * flops(model, inputs), 0.0, 0.98
    found = None
    for _ in range(7):
        ratio = (low + high) / 2
        smaller = _pruned(model, inputs, ratio)
        if flops(smaller, inputs) <= allowed * 1.02:
            found, high = smaller, ratio
        else:
            low = ratio
    if found is None:
        raise ValueError(f"A fraction of {fraction} of the FLOPs is out of reach")
    return found


def _pruned(model: nn.Module, inputs: Any, ratio: float) -> nn.Module:
    import torch_pruning

    smaller = copy.deepcopy(model)
    outputs = [module for module in smaller.modules() if isinstance(module, nn.Linear)][-1:]
    attention = {
        path: module for path, module in smaller.named_modules() if path.endswith(("attention", "self", "attn"))
    }
    heads = _heads(smaller, attention.values())
    pruner = torch_pruning.pruner.MagnitudePruner(
        smaller,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=outputs,
        num_heads=heads,
    )
    pruner.step()
    _set_sizes(smaller, heads)
    return smaller


def _heads(model: nn.Module, attention: Any) -> dict[nn.Module, int]:
    """Return the number of heads of each projection of queries, keys and values."""
    config, found = getattr(model, "config", None), {}
    for module in attention:
        for name in ("query", "key", "value", "q_proj", "k_proj", "v_proj"):
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Linear):
                few = name in ("k_proj", "v_proj") and getattr(config, "num_key_value_heads", None)
                found[layer] = few or config.num_attention_heads  # type: ignore[union-attr]
    return found


def _set_sizes(model: nn.Module, heads: dict[nn.Module, int]) -> None:
    for module in model.modules():
        layer = getattr(module, "query", getattr(module, "q_proj", None))
        if layer in heads:
            size = layer.out_features // heads[layer]
            for name in ("attention_head_size", "head_dim"):
                if hasattr(module, name):
                    setattr(module, name, size)
            if hasattr(module, "all_head_size"):
                module.all_head_size = layer.out_features
            if hasattr(module, "scaling"):
                module.scaling = size**-0.5
