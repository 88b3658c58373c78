"""The table of layers of a report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ignite_prune.measure import summary
from ignite_prune.measure.pattern_name import pattern_name
from ignite_prune.report.findings import LayerFinding, ReportSource

_THIN = 0.05
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def layers_of(source: ReportSource, example_inputs: Any) -> list[LayerFinding]:
    """Return a row for each layer of a model, or for each tensor of a file."""
    if source.model is not None:
        rows = summary(source.model, source.masks, example_inputs).layers
        return [
            LayerFinding(
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
    return [
        LayerFinding(
            name,
            "",
            "×".join(map(str, tensor.shape)),
            tensor.numel(),
            tensor.numel() if mask is None else int(mask.count_nonzero()),
            "dense" if mask is None else pattern_name(mask),
        )
        for name, tensor, mask in parameters_of(source)
    ]


def parameters_of(source: ReportSource) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield the name, tensor and mask (None: dense) of each parameter of a file.

    A state_dict does not tell parameters from buffers: what is named as the running statistics of norms, or is not of
    a floating-point type, is a buffer, and is left out as in the table of a model.
    """
    masks = source.masks or {}
    for name, tensor in {**masks, **source.state}.items():
        if name in masks or not (is_buffer(name, tensor) or tensor.dim() == 0):
            mask = masks.get(name)
            yield name, tensor, tensor != 0 if mask is None and source.masks is None and tensor.dim() > 1 else mask


def is_buffer(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor of a state_dict has the name or type of a buffer."""
    return name.rpartition(".")[2] in _STATISTICS or not (tensor.is_floating_point() or tensor.is_complex())


def total_of(layers: Sequence[LayerFinding]) -> LayerFinding:
    """Return the sum of all rows."""
    counted = [each for each in layers if each.flops is not None]
    return LayerFinding(
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
