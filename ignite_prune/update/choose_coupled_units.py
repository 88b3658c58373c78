"""From scores to masks for coupled units: each unit is pruned in all parameters that it lies in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import lcm

from torch import Tensor

from ignite_prune._utils.topk import keep_top
from ignite_prune.allocation import LAMP, Allocation, Global, Isomorphic, Layer
from ignite_prune.pattern import Coupled
from ignite_prune.structure import Cost, Kept, Structure, UnitGroup
from ignite_prune.update.comparable_scores import comparable
from ignite_prune.update.coupled_scores import coupled_layer
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.scores import ParameterScores, choose
from ignite_prune.update.uneven_groups import warn_of_uneven

Masks = Mapping[str, Tensor | None]


def choose_coupled_masks(
    scores: Mapping[str, ParameterScores], masks: Masks, group: ParamGroup, target: float | None
) -> dict[str, Tensor]:
    """Return the masks that bring a group with a structure to its target, a fraction of its units or of their cost.

    Args:
        scores: of each weight that is scored.
        masks: the masks so far of all parameters that the units lie in, None where nothing is pruned.
        group: from :func:`ignite_prune.update.param_groups.build`.
        target: the sparsity; None: all that the allocation prunes.

    Raises:
        TypeError, ValueError: as :func:`.choose_masks`; masks so far that are not made of whole units.
    """
    structure, pattern = group["structure"], group["pattern"]
    assert structure is not None and isinstance(pattern, Coupled)
    units = [structure.groups[name] for name in group["units"]]
    units = [each for each in units if any(slot.name in scores for slot in each.slots)]  # others are left out
    before = structure.kept({name: mask for name, mask in masks.items() if mask is not None})
    layers = [coupled_layer(each, structure, scores, before[each.name], pattern) for each in units]
    kept, chosen = units_that_stay(layers, units, before, group, target)
    return _spread(structure, kept, chosen, masks)


def units_that_stay(
    layers: Sequence[Layer], units: Sequence[UnitGroup], before: Kept, group: ParamGroup, target: float | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the kept units of all groups, and of the groups that get smaller.

    Args:
        layers: what an allocation sees of each group of units.
        units: the groups of units.
        before: which units are left so far, of all groups.
        group: the settings.
        target: the sparsity; None: all that the allocation prunes.
    """
    structure, pattern = group["structure"], group["pattern"]
    assert structure is not None and isinstance(pattern, Coupled)
    allocation, fraction = group["allocation"], 1.0 if target is None else target
    if group["target"] is None and not allocation.sets_own and not _to_prune(layers, allocation, fraction):
        return dict(before), {}
    layers = comparable(layers, pattern.normalise, spread=isinstance(allocation, Global))
    patterns = {each.name: replace(pattern, round_to=lcm(pattern.round_to, each.multiple)) for each in units}
    choice = partial(_chosen, layers, patterns, allocation)
    if group["target"] is None:
        chosen = choice(fraction)
    else:
        chosen = _to_cost(choice, before, sum(layer.units for layer in layers), structure, group["target"], fraction)
    kept = {**before, **chosen}
    if chosen and isinstance(allocation, (Global, Isomorphic, LAMP)):
        left = {layer.name: int(kept[layer.name].sum()) for layer in layers}
        warn_of_uneven(layers, left, patterns, allocation)
    return kept, chosen


def _to_prune(layers: Sequence[Layer], allocation: Allocation, fraction: float) -> bool:
    """Return whether the target asks for fewer units than are left; if not, no scores are needed."""
    pools = allocation.divide(layers, fraction)
    return any(pool.keep < sum(layer.living for layer in pool.layers) for pool in pools)


def _chosen(
    layers: Sequence[Layer], patterns: Mapping[str, Coupled], allocation: Allocation, fraction: float
) -> dict[str, Tensor]:
    """Return which units stay, of each layer that gets smaller, with this fraction of the units pruned."""
    found = choose(layers, allocation, fraction, least=lambda layer: patterns[layer.name].left(0, layer.shape[0]))
    return {layer.name: _rounded(layer, kept, patterns[layer.name]) for layer, kept in found}


def _to_cost(
    choice: Callable[[float], dict[str, Tensor]],
    before: Mapping[str, Tensor],
    units: int,
    structure: Structure,
    cost: Cost,
    sparsity: float,
) -> dict[str, Tensor]:
    """Return the choice of the fewest pruned units that reaches a cost, found by bisection."""
    allowed = (1 - sparsity) * cost.whole(structure)
    low, high = 0, units
    while low < high:
        middle = (low + high) // 2
        if cost(structure, {**before, **choice(middle / units)}) <= allowed:
            high = middle
        else:
            low = middle + 1
    chosen = choice(low / units)
    if low == units:
        left = cost(structure, {**before, **chosen})
        if left > allowed:
            removed = 1 - left / cost.whole(structure)
            raise ValueError(f"A sparsity of {sparsity:g} in {cost} is out of reach: no more than {removed:.3f}")
    return chosen


def _rounded(layer: Layer, kept: Tensor, pattern: Coupled) -> Tensor:
    """Keep more units where the pattern rounds their number up."""
    wanted = min(pattern.left(int(kept.count_nonzero()), len(kept)), layer.living)
    if wanted == int(kept.count_nonzero()):
        return kept
    return keep_top([layer.scores], [layer.alive], [layer.living], wanted, ())[0]


def _spread(
    structure: Structure, kept: Mapping[str, Tensor], chosen: Mapping[str, Tensor], masks: Masks
) -> dict[str, Tensor]:
    touched = {slot.name for name in chosen for slot in structure.groups[name].slots}
    made = structure.masks(kept)
    return {name: made[name] for name in masks if name in touched}
