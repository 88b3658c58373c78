"""From scores to masks for coupled units: each unit is pruned in all parameters that it lies in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from ignite_prune._utils.topk import keep_top
from ignite_prune.allocation import Allocation, Layer
from ignite_prune.allocation.base import once
from ignite_prune.pattern import Coupled
from ignite_prune.structure import Cost, Structure, UnitGroup
from ignite_prune.update.param_groups import ParamGroup
from ignite_prune.update.scores import ParameterScores, choose

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
    before = structure.kept({name: mask for name, mask in masks.items() if mask is not None})
    layers = [_layer(each, structure, scores, before[each.name], pattern) for each in units]
    choice = partial(_chosen, layers, pattern, group["allocation"])
    fraction = 1.0 if target is None else target
    if group["target"] is None:
        chosen = choice(fraction)
    else:
        chosen = _to_cost(choice, before, sum(layer.units for layer in layers), structure, group["target"], fraction)
    return _spread(structure, {**before, **chosen}, chosen, masks)


def _chosen(layers: Sequence[Layer], pattern: Coupled, allocation: Allocation, fraction: float) -> dict[str, Tensor]:
    """Return which units stay, of each layer that gets smaller, with this fraction of the units pruned."""
    found = choose(layers, allocation, fraction, least=lambda layer: pattern.left(0, layer.shape[0]))
    return {layer.name: _rounded(layer, kept, pattern) for layer, kept in found}


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


def unit_scores(units: UnitGroup, scores: Mapping[str, Tensor], pattern: Coupled) -> Tensor:
    """Return the score of each unit, ``(units,)``, float64, from the scores of the weights that have slices of it.

    Args:
        units: a group of units, and the slots that they lie in.
        scores: by name, one for each entry in the weight's shape; or 1-D, one for each slice of dim 0.
        pattern: how the scores of slices are combined.
    """
    found = []
    for slot in units.slots:
        given = scores.get(slot.name)
        if given is None or slot.dim >= given.dim():
            continue
        if given.dim() == 1 and len(given) == units.size:
            found.append(given.double())
            continue
        slices = given.double() if given.dim() == 1 else pattern.slices(given, slot.dim)
        if len(slices) != len(slot.units):
            raise ValueError(
                f"The saliency of parameter {slot.name!r} has {len(slices)} scores, but there are {units.size} units"
            )
        found.append(pattern.joined(slices, slot.units, units.size))
    if not found:
        raise ValueError(f"No weight with slices of {units.name!r} is scored; it should be among params")
    return pattern.together([each.to(found[0].device) for each in found])


def _layer(
    units: UnitGroup,
    structure: Structure,
    scores_by_name: Mapping[str, ParameterScores],
    alive: Tensor,
    pattern: Coupled,
) -> Layer:
    def scores() -> Tensor:
        wanted = {slot.name: scores_by_name[slot.name].compute() for slot in units.slots if slot.name in scores_by_name}
        found = unit_scores(units, wanted, pattern).cpu()
        return found.masked_fill(~alive, 0)

    living = int(alive.count_nonzero())
    # Sparsity is a fraction of the units before any slicing.
    whole = structure.origin.groups[units.name].size
    return Layer(units.name, (units.size,), whole, once(scores), None if alive.all() else alive, living)


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
