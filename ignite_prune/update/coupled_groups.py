"""Parameter groups of coupled units: with a structure, a group has every parameter that its units are slices of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ignite_prune.core.selection import named_parameters, reparametrised
from ignite_prune.pattern import Coupled, Unstructured
from ignite_prune.update.param_group import ParamGroup

if TYPE_CHECKING:
    from ignite_prune.structure import Cost, Structure, UnitGroup


def touched_weights(model: nn.Module, structure: Structure) -> list[str]:
    """Return the weights that units lie in, of any layer: those with two dimensions or more, no embeddings."""
    touched = {slot.name for each in structure for slot in each.slots}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    _, parts = reparametrised(model)
    return [
        name
        for name, parameter in named_parameters(model).items()
        if name in touched and parameter.dim() > 1 and id(parameter) not in embeddings and name not in parts
    ]


def extend_to_units(
    model: nn.Module, group: ParamGroup, structure: Structure, exact: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Extend a group to the coupled units that its weights produce; return all parameters that these lie in."""
    everything, selected = named_parameters(model), set(group["params"])
    other = [name for name, shape in structure.shapes.items() if name in everything and everything[name].shape != shape]
    if other or not set(everything) <= set(structure.shapes):
        raise ValueError("Argument structure is of another model; trace(model, example_inputs) this one")
    units = structure.made_by(selected, selected.intersection(exact))
    if not units:
        raise ValueError(
            "Argument structure: no group of units is made by a selected parameter; print(structure) tells why"
        )
    touched = {slot.name for each in units for slot in each.slots}
    group["units"] = [each.name for each in units]
    group["params"] = [name for name in everything if name in touched]
    group["scored"] = [name for name in group["params"] if name in selected]
    pattern = group["pattern"] = Coupled() if isinstance(group["pattern"], Unstructured) else group["pattern"]
    if not isinstance(pattern, Coupled):
        raise ValueError(f"With structure= units are a structure's: pattern.Coupled() goes with it, not {pattern}")
    if structure is structure.origin and all(pattern.left(0, each.size) == each.size for each in units):
        raise ValueError(f"With {pattern} no group may lose a unit; they have {[each.size for each in units][:8]}")
    if group["target"] is not None and not group["target"].measured and group["sparsity"] is not None:
        _check_reach(group, structure, group["target"], pattern, units)
    return {name: everything[name] for name in group["params"]}


def check_apart(groups: Sequence[ParamGroup]) -> None:
    """Raise if two groups have the same units."""
    seen: dict[str, int] = {}
    for index, group in enumerate(groups):
        for units in group["units"]:
            if units in seen:
                raise ValueError(
                    f"The units of {units!r} appear in group {seen[units]} and again in group {index}, by another "
                    "weight that has them too; name one of the two"
                )
            seen[units] = index


def _check_reach(
    group: ParamGroup, structure: Structure, cost: Cost, pattern: Coupled, units: Sequence[UnitGroup]
) -> None:
    """Raise if the cost of the fewest units that may be left is more than the target allows."""
    fewest = {each.name: torch.arange(each.size) < pattern.left(0, each.size) for each in units}
    reach = 1 - cost(structure, fewest) / cost.whole(structure)
    schedule = group["schedule"]
    ends = [group["sparsity"], schedule(schedule.horizon) if schedule is not None else None]
    asked = max(end for end in ends if end is not None)
    if asked > reach:
        raise ValueError(f"A sparsity of {asked:g} in {cost} cannot be reached: what must stay leaves {reach:.3f}")
