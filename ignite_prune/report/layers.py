"""The table of layers of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ignite_prune.measure import summary
from ignite_prune.measure.pattern_name import pattern_name
from ignite_prune.report.findings import Layer, Source

_THIN = 0.05


def layers_of(source: Source, example_inputs: Any) -> list[Layer]:
    """Return a row for each layer of a model, or for each tensor of a file."""
    if source.model is not None:
        rows = summary(source.model, source.masks, example_inputs).layers
        return [
            Layer(
                each.name or "(model)",
                each.kind,
                "×".join(map(str, each.shape)),
                each.parameters,
                each.kept,
                each.pattern,
                each.flops,
                each.effective_flops,
                each.seconds if each.seconds is not None and not math.isnan(each.seconds) else None,
            )
            for each in rows
        ]
    masks = source.masks or {}
    state: dict[str, Tensor] = {**masks, **source.state}
    return [_row(name, each, masks.get(name)) for name, each in state.items() if each.dim()]


def _row(name: str, tensor: Tensor, mask: Tensor | None) -> Layer:
    if mask is None and tensor.dim() > 1:
        mask = tensor != 0
    kept = tensor.numel() if mask is None else int(mask.count_nonzero())
    pattern = "dense" if mask is None else pattern_name(mask)
    return Layer(name, "", "×".join(map(str, tensor.shape)), tensor.numel(), kept, pattern)


def total_of(layers: Sequence[Layer]) -> Layer:
    """Return the sum of all rows."""
    counted = [each for each in layers if each.flops is not None]
    return Layer(
        "total",
        "",
        "",
        sum(each.parameters for each in layers),
        sum(each.kept for each in layers),
        "",
        sum(each.flops or 0 for each in counted) if counted else None,
        sum(each.effective_flops or 0 for each in counted) if counted else None,
    )


def thin_layers(masks: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence for each mask that keeps little, or that leaves outputs or inputs without a weight."""
    found = []
    for name, mask in masks.items():
        kept, size = int(mask.count_nonzero()), mask.numel()
        parts = []
        if size and kept < _THIN * size:
            parts.append(f"keeps {kept:,} of {size:,} weights ({kept / size:.1%})")
        if mask.dim() > 1 and kept < size:
            for dim, what in ((0, "outputs"), (1, "inputs")):
                alone = int((~mask.movedim(dim, 0).flatten(1).any(1)).sum())
                if alone:
                    parts.append(f"{alone} of {mask.shape[dim]} {what} have no weight")
        if parts:
            found.append(f"{name}: {'; '.join(parts)}")
    return found
