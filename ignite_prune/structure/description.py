"""``print(structure)``: shares first, then kinds of units and reasons, each with a count and one example.

A model has hundreds of dimensions, most of which repeat: a Llama of 32 layers has 32 groups of heads, a ResNet keeps
all its kernels. Groups whose names differ in numbers alone are therefore listed together, as are reasons that differ
in the path of the module alone. ``structure.groups`` and ``structure.frozen`` hold each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ignite_prune.structure.unit_group import UnitGroup

_Value = TypeVar("_Value")
_LISTED = 5
_LINES = 16
_MINOR = ("uses it as a kernel dimension", "indexes its rows")  # true of any model, so they come last
_LATER = ("bias", "running_mean", "running_var")
_ADVICE = {
    "normalises over it": "trace(through_norms=True) lets it shrink",
    "writes its size in the program": "write -1 there, or read the size from a tensor",
}


def described(
    groups: Sequence[UnitGroup],
    frozen: Mapping[tuple[str, int], str],
    unknown: Sequence[str],
    shares: Mapping[str, float],
) -> str:
    """Return a structure as text.

    Args:
        groups: the groups of units.
        frozen: the reason by name and dimension.
        unknown: operations without a rule.
        shares: by what they are shares of, the fractions that go if each group keeps one unit.
    """
    kinds = _alike((_kind(each), each) for each in groups)
    lines = [_number(len(groups), "group") + " of coupled units"]
    if groups:
        go = " and ".join(f"{100 * each:.0f} % of the {what}" for what, each in shares.items())
        lines[0] += f"; {go} can go, if one unit of each group stays"
    for kind in list(kinds.values())[:_LINES]:
        lines += _of_kind(kind)
    if len(kinds) > _LINES:
        lines.append(f"  and {len(kinds) - _LINES} more kinds, see structure.groups")
    if unknown:
        lines.append("operations without a rule, which freeze their inputs")
        lines.append(f"  {_some(unknown)}")
    return "\n".join([*lines, *_reasons(frozen)])


def _kind(group: UnitGroup) -> str:
    """Return the names of a group and of its slots without their numbers."""
    return re.sub(r"\d+", "*", " ".join([group.name, *(f"{slot.name}[{slot.dim}]" for slot in group.slots)]))


def _of_kind(kind: Sequence[UnitGroup]) -> list[str]:
    """Return two lines: name and sizes of groups of one kind, and the tensors that hold the units of the first."""
    sizes = sorted({each.size for each in kind})
    size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    times = f"{len(kind)} × " if len(kind) > 1 else ""
    slots = sorted(kind[0].slots, key=lambda slot: slot.name.endswith(_LATER))
    within = _path([slot.name for slot in slots])
    cut = len(".".join(within)) + 1 if within else 0
    place = f"in {'.'.join(within)}: " if within else "in "
    return [
        f"  {times}{_shared([each.name for each in kind])}: {size} units",
        f"      {place}{_some([slot.told(kind[0].size)[cut:] for slot in slots])}",
    ]


def _reasons(frozen: Mapping[tuple[str, int], str]) -> list[str]:
    """Return the reasons by count, the most frequent first, each with an example."""
    found = _alike((re.sub(r"^(\S+) in \S+ ", r"\1 ", why), (name, dim, why)) for (name, dim), why in frozen.items())
    lines = []
    for why, places in sorted(found.items(), key=lambda each: (each[0].endswith(_MINOR), -len(each[1]))):
        name, dim, _ = places[0]
        advice = next((f" ({text})" for ending, text in _ADVICE.items() if ending in why), "")
        lines.append(f"  {len(places)} × {why}{advice}, as {name}[{dim}]")
    more = [f"  and {len(lines) - _LINES} more reasons"] if len(lines) > _LINES else []
    total = _number(len(frozen), "dimension")
    return (
        [f"{total} of parameters keep their size; structure.frozen holds each reason", *lines[:_LINES], *more]
        if lines
        else []
    )


def _path(names: Sequence[str]) -> list[str]:
    """Return the parts of the longest path of a module that all named tensors are in."""
    found = []
    for each in zip(*(name.split(".")[:-1] for name in names)):
        if len(set(each)) > 1:
            break
        found.append(each[0])
    return found


def _shared(names: Sequence[str]) -> str:
    """Return names that differ in numbers as one glob."""
    parts = zip(*(re.split(r"(\d+)", name) for name in names))
    return "".join(each[0] if len(set(each)) == 1 else "*" for each in parts)


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _alike(pairs: Iterable[tuple[str, _Value]]) -> dict[str, list[_Value]]:
    found: dict[str, list[_Value]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")
