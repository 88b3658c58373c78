"""Coupled units of a model whose parameters lie on several ranks: norms of slices are summed over ranks.

What is exchanged is one number for each index of the dimensions that units lie in. From there on each rank computes the
same as one process would, and makes its part of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.shard import Part, local
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.sharded_mask_store import ShardedMaskStore
from ignite_prune.pattern import Coupled
from ignite_prune.structure import Slot, Structure, UnitGroup
from ignite_prune.update.choose_coupled_units import units_that_stay
from ignite_prune.update.coupled_scores import coupled_layer
from ignite_prune.update.plan import GroupUpdate
from ignite_prune.update.sharded.sharded_channels import is_split_beyond


@dataclass
class CoupledUpdate:
    """One group's units in an update, and this rank's contribution to the scores of their slices.

    Args:
        update: the group's.
        units: the groups of units that are scored.
        own: by unit group and slot, this rank's part of the scores of the slot's slices; see :func:`_slices`.
    """

    update: GroupUpdate
    units: list[UnitGroup]
    own: dict[tuple[str, int], Tensor]


def coupled_update(update: GroupUpdate, store: ShardedMaskStore) -> CoupledUpdate:
    """Return what this rank knows of a group's units.

    Raises:
        ValueError: scores that a norm does not take; a norm that cannot be summed over ranks; units without scores.
    """
    structure, pattern, found = update.group["structure"], update.group["pattern"], dict[tuple[str, int], Tensor]()
    assert structure is not None and isinstance(pattern, Coupled)
    units = [structure.groups[name] for name in update.group["units"]]
    units = [each for each in units if any(slot.name in update.scores for slot in each.slots)]
    for group in units:
        for index, slot in enumerate(group.slots):
            if slot.name in update.scores and slot.dim < store.parameters[slot.name].dim():
                found[group.name, index] = _slices(pattern, slot, update, store)
        if not any(name == group.name for name, _ in found):
            raise ValueError(f"No weight with slices of {group.name!r} is scored; it should be among params")
    return CoupledUpdate(update, units, found)


def _slices(pattern: Coupled, slot: Slot, update: GroupUpdate, store: ShardedMaskStore) -> Tensor:
    """Return this rank's part of the scores of a parameter's slices, to be summed: of split ones powers of norms."""
    parameter, part = store.parameters[slot.name], store.parts[slot.name]
    scores = update.scores[slot.name].compute()
    if tuple(scores.shape) != part.size:
        raise ValueError(f"The saliency of sharded parameter {slot.name!r} should give one score for each entry")
    is_split = is_split_beyond(parameter, [slot.dim])
    if is_split and pattern.norm == torch.inf:
        raise ValueError(
            f"{pattern} takes the largest entry of slices of {slot.name!r} that several ranks hold parts of; take a "
            "finite norm"
        )
    whole = torch.zeros(part.shape[slot.dim], dtype=torch.float64)
    if part.counted and scores.numel():
        slices = scores.double() if scores.dim() == 1 else pattern.slices(scores, slot.dim)
        powers = slices**pattern.norm if is_split and pattern.norm is not None else slices
        whole.narrow(0, part.start[slot.dim], part.size[slot.dim]).copy_(powers)
    return whole


def coupled_masks(
    updates: Sequence[CoupledUpdate], kept: Mapping[str, Tensor], store: ShardedMaskStore, exchange: Exchange
) -> Iterator[dict[str, Tensor]]:
    """Yield each group's new masks of this rank's parts; every rank calls it.

    Args:
        updates: of the groups with units.
        kept: which units of the structure are left so far; those of a group whose masks are lifted count as left.
        store: of the parameters.
        exchange: sums the scores, in one message.
    """
    every = [own for each in updates for own in each.own.values()]
    sums = iter(torch.split(exchange.sum(torch.cat(every), "norms of slices"), [len(own) for own in every]))
    for each in updates:
        group = each.update.group
        structure, pattern, target = group["structure"], group["pattern"], each.update.target
        assert structure is not None and isinstance(pattern, Coupled) and target is not None
        found, layers, before = dict(zip(each.own, sums)), [], dict(kept)
        for units in each.units:
            if each.update.lifts:
                before[units.name] = torch.ones_like(before[units.name])
            alive, scores = before[units.name], _scores(units, found, pattern, store)
            layer = coupled_layer(units, structure, {}, alive, pattern)
            layers.append(replace(layer, scores=_constant(scores.masked_fill(~alive, 0))))
        now, chosen = units_that_stay(layers, each.units, before, group, target)
        yield _spread(structure, now, chosen, store, group["params"])


def _constant(scores: Tensor) -> Callable[[], Tensor]:
    return lambda: scores


def _scores(
    units: UnitGroup, found: Mapping[tuple[str, int], Tensor], pattern: Coupled, store: ShardedMaskStore
) -> Tensor:
    """Return the scores of units from the sums over ranks, as ``unit_scores`` does from whole scores."""
    several = []
    for index, slot in enumerate(units.slots):
        if (units.name, index) not in found:
            continue
        slices, parameter = found[units.name, index], store.parameters[slot.name]
        if pattern.norm is not None and is_split_beyond(parameter, [slot.dim]):
            slices = slices ** (1 / pattern.norm)
        is_vector = parameter.dim() == 1 and len(slices) == units.size
        several.append(slices if is_vector else pattern.joined(slices, slot.units, units.size))
    return pattern.together(several)


def _spread(
    structure: Structure,
    kept: Mapping[str, Tensor],
    chosen: Mapping[str, Tensor],
    store: ShardedMaskStore,
    names: Sequence[str],
) -> dict[str, Tensor]:
    """Return this rank's parts of the masks of the parameters in which chosen units lie."""
    touched = {slot.name for name in chosen for slot in structure.groups[name].slots}
    indices = structure.indices(kept)
    return {
        name: _part_of_mask(indices.get(name, {}), store.parts[name]).to(local(store.parameters[name]).device)
        for name in names
        if name in touched
    }


def _part_of_mask(indices: Mapping[int, Tensor], part: Part) -> Tensor:
    mask = torch.ones(part.size, dtype=torch.bool)
    for dim, left in indices.items():
        stay = torch.zeros(part.shape[dim], dtype=torch.bool)
        stay[left] = True
        stay = stay.narrow(0, part.start[dim] if part.size[dim] else 0, part.size[dim])
        mask &= stay.view([-1 if each == dim else 1 for each in range(mask.dim())])
    return mask


def kept_over_shards(structure: Structure, store: MaskStore) -> dict[str, Tensor]:
    """Return which units the masks keep, as :meth:`.Structure.kept`; every rank calls it.

    Raises:
        ValueError: on every rank: the masks do not prune whole units.
    """
    assert isinstance(store, ShardedMaskStore)
    slots = [
        (group, slot)
        for group in structure
        for slot in group.slots
        if slot.name in store.parameters and store.pruned(slot.name) is not None
    ]
    kept = {group.name: torch.ones(group.size, dtype=torch.bool) for group in structure}
    if not slots:
        return kept
    own = [_living_slices(slot, store) for _, slot in slots]
    found = torch.split(store.exchange.sum(torch.cat(own), "living slices"), [len(each) for each in own])
    for (group, slot), counts in zip(slots, found):
        here = torch.zeros(group.size, dtype=torch.bool)
        here[slot.units[(slot.units >= 0) & (counts > 0)]] = True
        kept[group.name] &= here
    indices = structure.indices(kept)
    for name in {slot.name for _, slot in slots}:
        whole = store.parameters[name].numel()
        for dim, left in indices.get(name, {}).items():
            whole = whole // store.parameters[name].shape[dim] * len(left)
        if whole != store.kept(name):
            raise ValueError(f"The mask of {name!r} is not made of whole units; prune with PruneHandler(structure=...)")
    return kept


def _living_slices(slot: Slot, store: ShardedMaskStore) -> Tensor:
    """Return 1 for each index of a dimension of which this rank has living entries."""
    mask, part = store.pruned(slot.name), store.parts[slot.name]
    assert mask is not None
    whole = torch.zeros(part.shape[slot.dim], dtype=torch.int32)
    if mask.numel():
        living = mask.movedim(slot.dim, 0).flatten(1).any(1) if mask.dim() > 1 else mask
        whole.narrow(0, part.start[slot.dim], part.size[slot.dim]).copy_(living)
    return whole
