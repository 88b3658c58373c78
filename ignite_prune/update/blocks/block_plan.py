"""One block's update: its evidence, and the masks and values computed from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from ignite_prune._utils.sparsity import as_unit_fraction
from ignite_prune.allocation import OWL, Uniform
from ignite_prune.allocation.base import Layer
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.evidence.evidence import Evidence
from ignite_prune.repair.base import PrunedParameter
from ignite_prune.saliency import Magnitude, Saliency
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.param_groups import pattern_of
from ignite_prune.update.plan import (
    GroupUpdate,
    UpdatePlan,
    bound_scores,
    drawn,
    evidence_of,
    merge,
    plan_masks,
    repaired,
)


def evidence_for_block(model: nn.Module, group: ParamGroup, parameters: Mapping[str, nn.Parameter]) -> Evidence | None:
    """Return the collectors of what a block's saliency and repairs need; None if they need nothing."""
    evidence = evidence_of(model, [group], parameters)
    if evidence is not None:
        evidence.reset(start=True)
    return evidence


def check_local(group: ParamGroup, evidence: Evidence | None) -> None:
    """Raise if a saliency or repair cannot be computed from the forward passes of one block.

    Raises:
        ValueError: names it.
    """
    for repair in group["repair"]:
        if repair.whole or repair.passes:
            raise ValueError(
                f"repair.{type(repair).__name__}() runs the whole model, of which there is one block at a time; apply "
                "it afterwards, or prune with prune_model"
            )
    for collector in () if evidence is None else evidence.collectors.values():
        if collector.probes or collector.backward:
            raise ValueError(
                f"{collector.need.key!r} evidence needs a loss or passes of the whole model, of which there is one "
                "block at a time; take a saliency of the inputs of layers (saliency.Wanda(), SparseGPT()), of "
                "activations or of weights, or prune with prune_model"
            )
    if group["saliency"].steps > 1:
        raise ValueError(f"{type(group['saliency']).__name__} prunes in several steps; prune with prune_model")


def plan_block(
    model: nn.Module, group: ParamGroup, target: float | None, store: MaskStore, evidence: Evidence | None
) -> UpdatePlan:
    """Return what pruning one block changes; nothing is changed. The evidence is used up.

    Args:
        model: unwrapped.
        group: of the block's parameters.
        target: their sparsity.
        store: of the block's parameters.
        evidence: gathered, on this rank.

    Raises:
        TypeError, ValueError: see :func:`.prune_model`.
    """
    if evidence is not None:
        evidence.sum_over_ranks()
    saliency, plan, before = drawn(group, group["generator"]), UpdatePlan(), store.so_far()
    for part in _parts(group, evidence, store):
        made = UpdatePlan()
        merge(made.masks, _masks(part, target, saliency, store, evidence))
        made = repaired(model, [part], store, before, made, evidence, None, overwrite=True)
        _release(evidence, part["scored"])
        for mine, new in ((plan.masks, made.masks), (plan.values, made.values)):
            while new:
                name, tensor = new.popitem()
                mine[name] = tensor.contiguous()
    return plan


def _parts(group: ParamGroup, evidence: Evidence | None, store: MaskStore) -> Iterator[ParamGroup]:
    """Yield groups that can be planned one after another, so that scores and evidence of one are in memory.

    The layer with the most evidence comes first: there are few new masks and values in memory then.
    """
    if not isinstance(group["allocation"], Uniform) or not all(repair.by_layer for repair in group["repair"]):
        yield group
        return
    for name in sorted(group["scored"], key=lambda name: (-_size(evidence, name), -store.whole(name))):
        yield {**group, "params": [name], "scored": [name], "shapes": {name: group["shapes"][name]}}


def _size(evidence: Evidence | None, name: str) -> int:
    """Return the bytes of a parameter's evidence."""
    sums = [] if evidence is None else [evidence.totals(need)[0].get(name) for need in evidence.collectors]
    return sum(held.nbytes for held in sums if held is not None)


def _masks(
    part: ParamGroup, target: float | None, saliency: Saliency, store: MaskStore, evidence: Evidence | None
) -> dict[str, torch.Tensor]:
    """Return the new masks of a group; what a repair selects again is selected by magnitude, which needs no memory."""
    before = store.so_far()
    if part["repair"] and isinstance(part["allocation"], Uniform):
        update = GroupUpdate(part, target, Magnitude())
        update.scores = bound_scores(part, update.saliency, store, before, None)
        masks = plan_masks(update, store, before, None)
        if all(_is_selected_again(part, name, mask, evidence) for name, mask in masks.items()):
            return masks
    return plan_masks(_scored(part, target, saliency, store, evidence), store, before, evidence)


def _is_selected_again(part: ParamGroup, name: str, mask: torch.Tensor, evidence: Evidence | None) -> bool:
    first = part["repair"][0]
    forms = [evidence.collectors[need].record.forms for need in first.needs] if evidence is not None else []
    transposed = any(len(form.get(name, ())) == 2 and bool(form[name][1]) for form in forms)
    return first.selects(PrunedParameter(name, part["saliency"], pattern_of(part, name)), mask, transposed)


def _release(evidence: Evidence | None, names: Sequence[str]) -> None:
    """Free the evidence of some parameters."""
    if evidence is None:
        return
    for need, collector in evidence.collectors.items():
        sums, _ = evidence.totals(need)
        for name in names:
            collector.record.sums.pop(name, None)
            if isinstance(sums, dict):
                sums.pop(name, None)


def _scored(
    group: ParamGroup, target: float | None, saliency: Saliency, store: MaskStore, evidence: Evidence | None
) -> GroupUpdate:
    update = GroupUpdate(group, target, saliency)
    update.scores = bound_scores(group, update.saliency, store, store.so_far(), evidence)
    return update


def block_layer(group: ParamGroup, store: MaskStore, evidence: Evidence | None) -> Layer:
    """Return a whole block as one layer of an allocation over blocks."""
    if evidence is not None:
        evidence.sum_over_ranks()
    saliency = drawn(group, group["generator"], advance=False)
    layers = [each.layer() for each in _scored(group, None, saliency, store, evidence).scores.values()]
    units = sum(layer.units for layer in layers)
    shape = (units,)
    return Layer(group["params"][0], shape, units, lambda: _joined(layers), None, units)


def _joined(layers: Sequence[Layer]) -> torch.Tensor:
    return torch.cat([layer.scores().flatten().float() for layer in layers])


def owl_targets(owl: OWL, ratios: Sequence[float], groups: Sequence[ParamGroup]) -> list[float]:
    """Return the sparsity of each block from the outlier ratios of all, as OWL is published.

    Args:
        owl: the allocation.
        ratios: the fraction of outliers of each block.
        groups: of the blocks.
    """
    pattern, sparsity = groups[0]["pattern"], groups[0]["sparsity"]
    units = [sum(pattern_of(group, name).count(shape) for name, shape in group["shapes"].items()) for group in groups]
    counts = owl.counts(ratios, units, units, as_unit_fraction(pattern, sparsity or 0.0))
    return [(1 - count / max(number, 1)) * pattern.share for count, number in zip(counts, units)]


def by_block(group: ParamGroup) -> ParamGroup:
    """Return a group whose allocation divides over blocks, as one that is uniform within its block."""
    return {**group, "allocation": Uniform()} if isinstance(group["allocation"], OWL) else group
