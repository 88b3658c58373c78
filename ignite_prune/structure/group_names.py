"""The groups that a name means: their own names, and those of the tensors that have their units."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ignite_prune._utils.arguments import near
from ignite_prune.structure.unit_group import UnitGroup


def group_named(groups: Mapping[str, UnitGroup], name: str) -> UnitGroup:
    """Return the group of a name: its own, or that of any tensor that has its units.

    Args:
        groups: by their own names.
        name: of a group or a tensor, ``"name[1]"`` for dimension 1 of it.

    Raises:
        ValueError: no group, or several, go by the name.
    """
    if name in groups:
        return groups[name]
    tensor, _, dim = name.removesuffix("]").partition("[")
    having = [(group, slot) for group in groups.values() for slot in group.slots if slot.name == tensor]
    if dim:
        choices = [[group for group, slot in having if str(slot.dim) == dim]]
    else:
        made = [group for group, slot in having if slot is group.slots[group.maker]]
        choices = [made, [group for group, slot in having if slot.dim == 0], [group for group, _ in having]]
    found = list(dict.fromkeys(next((each for each in choices if each), [])))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name!r} has units of several groups; name one: {', '.join(each.name for each in found)}")
    raise ValueError(f"There are no units of {name!r}; {near(name, list(groups))}")


def groups_made_by(
    groups: Mapping[str, UnitGroup], weights: Collection[str], exact: Collection[str]
) -> list[UnitGroup]:
    """Return the groups whose units are produced by some of the weights.

    Args:
        groups: by their own names.
        weights: names of the weights.
        exact: those of them that name a group although another weight comes first in it; if the weights come first in
            no group, all do.
    """
    found = {group.name for group in groups.values() if group.slots[group.maker].name in weights}
    for name in exact if found else weights:
        try:
            group = group_named(groups, name)
        except ValueError:
            continue
        if any(slot.name == name and slot.dim == group.slots[group.maker].dim for slot in group.slots):
            found.add(group.name)
    return [group for group in groups.values() if group.name in found]
