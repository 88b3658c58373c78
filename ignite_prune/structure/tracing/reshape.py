"""Unit ids of a reshaped tensor: merged and split dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ignite_prune.structure.tracing.traced_tensor import Dim, fixed
from ignite_prune.structure.tracing.unit_ids import UnitIds

Guess = Callable[[Sequence[int], Dim], int]
"""Called with the sizes of several parts and the dimension that is split; returns which of them its units are along."""


def reshaped(
    units: UnitIds, dims: Sequence[Dim], sizes: Sequence[int], free: int | None, why: str, guess: Guess | None = None
) -> tuple[Dim, ...]:
    """Return the unit ids of a reshaped tensor's dimensions.

    Merged and split dimensions are handled in the smallest blocks of dimensions with equal products. At most one old
    dimension of a block may have removable units. They are assigned to one new dimension: the only one along which
    their ids vary, or the one whose size the program leaves open (-1). Indices that belong to one unit are tied; all
    other dimensions are frozen.

    Args:
        units: the union-find of unit ids.
        dims: the dimensions before.
        sizes: the sizes after, with the same product.
        free: index in ``sizes`` of the size that the program leaves open, if there is one.
        why: the operation, for the reason that frozen dimensions are recorded with.
        guess: tells the new dimension where neither the ids nor the program do; None freezes the units then.

    Example:
        >>> units = UnitIds()
        >>> channels = units.new(2)
        >>> flat, = reshaped(units, (channels, fixed(3)), [6], None, "view")
        >>> flat.tolist()
        [1, 1, 1, 2, 2, 2]
    """
    found: list[Dim] = []
    for old, new in _blocks([len(dim) for dim in dims], sizes):
        parts = [dims[i] for i in old]
        if [len(part) for part in parts] == [sizes[j] for j in new]:
            found += parts
            continue
        flat = _merged(units, parts, why)
        start = free - new[0] if free is not None and free in new else None
        found += _split(units, flat, [sizes[j] for j in new], start, why, guess)
    return tuple(found)


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yield the smallest runs of old and new dimensions whose sizes have equal products."""
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        before, after = 1, 1
        if i < len(old):
            before, i = old[i], i + 1
        if j < len(new):
            after, j = new[j], j + 1
        while (
            before != after
            or (i < len(old) and old[i] == 1 and j == len(new))
            or (j < len(new) and new[j] == 1 and i == len(old))
        ):
            if (before <= after and i < len(old)) or j == len(new):
                before, i = before * old[i], i + 1
            else:
                after, j = after * new[j], j + 1
        yield range(first, i), range(second, j)


def _merged(units: UnitIds, parts: Sequence[Dim], why: str) -> Dim:
    """Return the ids of merged dimensions; freeze them if more than one has removable units."""
    sizes = [len(part) for part in parts]
    for part in parts if max(sizes) > 1 else ():
        if len(part) == 1:
            units.freeze(part, f"{why} merges it with others")
    moving = [k for k, part in enumerate(parts) if not units.is_frozen(part).all()]
    if len(moving) > 1:  # a size that the program chose yields to the width of a layer
        moving = [k for k in moving if not units.is_open(parts[k])] or moving[:1]
    if len(moving) != 1:
        for part in parts:
            units.freeze(part, f"{why} merges two dimensions that could shrink")
        return fixed(math.prod(sizes))
    shape = [1] * len(sizes)
    shape[moving[0]] = -1
    return parts[moving[0]].view(shape).expand(sizes).reshape(-1)


def _split(
    units: UnitIds, flat: Dim, sizes: Sequence[int], free: int | None, why: str, guess: Guess | None
) -> list[Dim]:
    """Return the ids of a dimension's parts after splitting it, with the units along one of them."""
    if not len(flat) or units.is_frozen(flat).all():
        return [fixed(size) for size in sizes]
    block = flat.view(*sizes)
    wide = [k for k, size in enumerate(sizes) if size > 1]
    if len(wide) > 1:
        alone = [k for k in wide if _varies_alone(units.find(block), k)]
        if not alone and free is None and guess is not None:
            free = wide[guess([sizes[k] for k in wide], flat)]
        wide = alone[:1] or ([] if free is None else [free])
    if not wide:
        units.freeze(flat, f"{why} splits it into parts of sizes that are written in the program")
        return [fixed(size) for size in sizes]
    along = block.movedim(wide[0], 0).reshape(sizes[wide[0]], -1)
    units.tie(along, along[:, :1])
    return [along[:, 0] if k == wide[0] else fixed(size) for k, size in enumerate(sizes)]


def _varies_alone(block: Tensor, k: int) -> bool:
    """Return whether ids vary along dimension ``k`` alone."""
    along = block.movedim(k, 0).reshape(block.shape[k], -1)
    return torch.equal(along, along[:, :1].expand_as(along))
