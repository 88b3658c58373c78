"""The table of a model's layers: sizes, sparsity, pattern, FLOPs and latency; and the comparison of two models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune._utils.table import as_table, shown_seconds
from ignite_prune.core.selection import unwrap
from ignite_prune.export.sparse_weight import SparseWeight
from ignite_prune.measure.layer_cost import LayerCosts, measure_layers
from ignite_prune.measure.pattern_name import pattern_name


@dataclass(frozen=True)
class LayerRow:
    """One layer: a module that directly holds parameters.

    Attributes:
        name: path of the module; ``""`` for the model itself.
        kind: class name.
        shape: of its largest parameter.
        parameters: number of entries of its parameters, those shared with an earlier layer excluded.
        kept: how many of them are not pruned.
        pattern: of the largest parameter's mask: ``"dense"``, ``"unstructured"``, ``"2:4"``, ``"blocks 4x4"``,
            ``"rows"``, ``"columns"``.
        flops: of one forward pass over the example; None without one.
        effective_flops: ``flops`` times the kept fraction of the largest parameter: what a sparse kernel has to do.
        seconds: time of its forward in that pass; None without one, NaN if it is not called.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    kept: int
    pattern: str
    flops: int | None
    effective_flops: int | None
    seconds: float | None

    @property
    def sparsity(self) -> float:
        """The pruned fraction of the parameters."""
        return _pruned(self.kept, self.parameters)


@dataclass(frozen=True)
class Summary:
    """A table of layers and their totals; ``print(summary)`` shows it.

    Attributes:
        layers: in the model's order.
        parameters: number of entries of all parameters, each once.
        kept: how many of them are not pruned.
        bytes: that all parameters and buffers take in memory.
        flops: of the whole forward pass; None without example inputs.
        effective_flops: the same with each layer's kept fraction.
        seconds: time of a forward pass of the whole model; None without example inputs.
    """

    layers: tuple[LayerRow, ...]
    parameters: int
    kept: int
    bytes: int
    flops: int | None
    effective_flops: int | None
    seconds: float | None

    @property
    def sparsity(self) -> float:
        """The pruned fraction of all parameters."""
        return _pruned(self.kept, self.parameters)

    def __str__(self) -> str:
        head = ["layer", "type", "shape", "parameters", "kept", "sparsity", "pattern"]
        rows = [
            [layer.name or "(model)", layer.kind, "×".join(map(str, layer.shape)), *_numbers(layer), layer.pattern]
            for layer in self.layers
        ]
        rows.append(["total", "", "", *_numbers(self), ""])
        if self.flops is not None:
            head += ["FLOPs", "effective", "latency"]
            every: list[LayerRow | Summary] = [*self.layers, self]
            for row, each in zip(rows, every):
                row += [f"{each.flops:,}", f"{each.effective_flops:,}", shown_seconds(each.seconds or math.nan)]
        return as_table(head, rows)

    __repr__ = __str__


def _pruned(kept: int, parameters: int) -> float:
    return 1 - kept / parameters if parameters else 0.0


def _numbers(each: LayerRow | Summary) -> list[str]:
    return [f"{each.parameters:,}", f"{each.kept:,}", f"{each.sparsity:.2%}"]


@dataclass(frozen=True)
class Comparison:
    """Two summaries, as totals before and after; ``print(comparison)`` shows them."""

    before: Summary
    after: Summary

    def __str__(self) -> str:
        rows = []
        for label, name in (
            ("parameters", "parameters"),
            ("kept", "kept"),
            ("bytes in memory", "bytes"),
            ("FLOPs", "flops"),
            ("effective FLOPs", "effective_flops"),
        ):
            one, two = getattr(self.before, name), getattr(self.after, name)
            if one is not None and two is not None:
                rows.append([label, f"{one:,}", "⇒", f"{two:,}", f"{two / one:.3f}" if one else "-"])
        one, two = self.before.seconds, self.after.seconds
        if one and two:
            rows.append(["latency", shown_seconds(one), "⇒", shown_seconds(two), f"{two / one:.3f}"])
        return as_table(["", "before", "", "after", "ratio"], rows)

    __repr__ = __str__


def summary(model: nn.Module, masks: Mapping[str, Tensor] | None = None, example_inputs: Any = None) -> Summary:
    """Return the table of a model's layers; ``print`` shows it. The model is not changed.

    Args:
        model: bare, wrapped or compiled.
        masks: bool masks by parameter name, True = kept, such as ``pruner.masks``. None counts zeros of parameters of
            two or more dimensions as pruned; a bias or a norm is often 0 without being pruned.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, on the model's device; adds FLOPs
            and latencies, measured in eval mode. None leaves them out.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a mask does not fit the model, inputs are on another device, or the forward pass fails.

    Example:
        >>> import torch
        >>> from ignite_prune import allocation, prune_model
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> masks = prune_model(model, sparsity=0.75, allocation=allocation.Uniform())
        >>> print(summary(model, masks))
        layer  type    shape  parameters  kept  sparsity  pattern
        -----  ------  -----  ----------  ----  --------  ------------
        0      Linear    8×4          40    16    60.00%  unstructured
        2      Linear    2×8          18     6    66.67%  unstructured
        total                         58    22    62.07%
    """
    model = unwrap(model)
    _check(model, masks)
    costs = None if example_inputs is None else measure_layers(model, example_inputs)
    seen: set[Tensor] = set()
    rows = []
    for path, module in model.named_modules():
        row = _row(path, module, masks, costs, seen)
        if row is not None:
            rows.append(row)
    held = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return Summary(
        tuple(rows),
        sum(each.parameters for each in rows),
        sum(each.kept for each in rows),
        sum(each.nbytes for each in held.values()),
        None if costs is None else costs.flops,
        None if costs is None else costs.flops - sum((e.flops or 0) - (e.effective_flops or 0) for e in rows),
        None if costs is None else costs.seconds,
    )


def compare(before: nn.Module, after: nn.Module, example_inputs: Any = None) -> Comparison:
    """Return the totals of two models, before and after pruning, slicing or export; ``print`` shows them.

    Example:
        >>> print(compare(nn.Linear(100, 10), nn.Linear(50, 10)))
                         before     after  ratio
        ---------------  ------  -  -----  -----
        parameters        1,010  ⇒    510  0.505
        kept              1,010  ⇒    510  0.505
        bytes in memory   4,040  ⇒  2,040  0.505
    """
    return Comparison(summary(before, None, example_inputs), summary(after, None, example_inputs))


def _row(
    path: str, module: nn.Module, masks: Mapping[str, Tensor] | None, costs: LayerCosts | None, seen: set[Tensor]
) -> LayerRow | None:
    own: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters(recurse=False):
        if not nn.parameter.is_lazy(parameter):
            own[name] = parameter
    if isinstance(module, SparseWeight):
        own["weight"] = module.weight
    if not own:
        return None
    prefix = f"{path}." if path else ""
    kept = {name: _kept(f"{prefix}{name}", each.detach(), masks) for name, each in own.items()}
    counts = {n: each.numel() if (mask := kept[n]) is None else int(mask.count_nonzero()) for n, each in own.items()}
    fresh = [name for name, each in own.items() if each not in seen]
    seen.update(own.values())
    largest = max(own, key=lambda name: own[name].numel())
    whole, mask = own[largest].numel(), kept[largest]
    flops = None if costs is None else costs.of.get(path, 0)
    return LayerRow(
        path,
        type(module).__name__,
        tuple(own[largest].shape),
        sum(own[name].numel() for name in fresh),
        sum(counts[name] for name in fresh),
        "dense" if mask is None else pattern_name(mask),
        flops,
        None if flops is None else round(flops * counts[largest] / max(whole, 1)),
        None if costs is None else costs.seconds_of.get(path, math.nan),
    )


def _kept(name: str, parameter: Tensor, masks: Mapping[str, Tensor] | None) -> Tensor | None:
    """Return the mask of a parameter; None if all of it is kept."""
    if masks is not None:
        return masks.get(name)
    return parameter != 0 if parameter.dim() > 1 and not parameter.is_meta else None


def _check(model: nn.Module, masks: Any) -> None:
    if masks is None:
        return
    if not isinstance(masks, Mapping):
        raise TypeError(f"Argument masks should be a mapping {{name: bool tensor}}, but given {type(masks)}")
    everything = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in everything:
            raise ValueError(f"Argument masks: the model has no parameter {name!r}; {near(name, list(everything))}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != everything[name].shape:
            raise ValueError(
                f"The mask of {name!r} should be a bool tensor of shape {tuple(everything[name].shape)}, but given "
                f"{mask!r:.80}"
            )
