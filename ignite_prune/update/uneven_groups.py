"""The warning about groups of coupled units that a ranking leaves whole, or empties, while it prunes the others."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence

from ignite_prune._utils.sparsity import kept
from ignite_prune.allocation import Allocation, Isomorphic, Layer
from ignite_prune.core.check_report import SparsityWarning
from ignite_prune.pattern import Coupled

_LITTLE, _HALF = 0.2, 0.45


def warn_of_uneven(
    layers: Sequence[Layer], left: Mapping[str, int], patterns: Mapping[str, Coupled], allocation: Allocation
) -> None:
    """Warn of groups that lose no unit while the others lose some, and of groups that lose all units that may go.

    The number of units left has to differ by at least 2 from an even share at the sparsity of the others, or by 1 where
    they lost about half. Groups of the same kind are taken together, and each alone.

    Args:
        layers: what the allocation saw of each group.
        left: the number of units left in each.
        patterns: of each; ``pattern.left`` is the number of units that a group keeps at least.
        allocation: the one that divided the sparsity.
    """
    together: dict[Hashable, list[Layer]] = {}
    for layer in layers:
        together.setdefault((layer.kind,), []).append(layer)
        together.setdefault(layer.name, []).append(layer)
    whole, all_left = sum(layer.units for layer in layers), sum(left.values())
    untouched, emptied = list[str](), list[str]()
    for alike in together.values():
        size, now = sum(layer.units for layer in alike), sum(left[layer.name] for layer in alike)
        if size == whole:
            continue
        others = 1 - (all_left - now) / (whole - size)  # the fraction that they lost
        even = kept(size, others)
        if now == size and others >= _LITTLE and size - even > (others < _HALF):
            untouched += [layer.name for layer in alike]
        elif now <= sum(patterns[layer.name].left(0, layer.units) for layer in alike) and even - now > (
            others > 1 - _HALF
        ):
            emptied += [layer.name for layer in alike]
    told = [f"{_named(untouched)} lost no unit"] * bool(untouched)
    told += [f"{_named(emptied)} lost all that may go"] * bool(emptied)
    if told:
        warnings.warn(
            f"Of the groups of coupled units, {' and '.join(told)}, unlike the others: units of several groups are "
            f"ranked together. {_ADVICE[isinstance(allocation, Isomorphic)]}",
            SparsityWarning,
            stacklevel=2,
        )


_ADVICE = (
    "allocation.Isomorphic() and Uniform() divide a sparsity evenly, and Global(min_density=, max_sparsity=) bounds "
    "what a group loses",
    "allocation.Uniform() prunes the same fraction of each group",
)


def _named(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
