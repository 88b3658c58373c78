"""Slicing an optimizer's slots like their parameter: slots of its shape, and factored ones of some dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.kept import kept_of
from ignite_prune.core.moments import is_plain_data

Ranges = tuple[tuple[int, int] | None, ...]
"""For each dimension of a slot the parameter's dimensions that it stands for, flattened; None where its size is 1."""


def cut_slot(name: str, slot: Any, parameter: Tensor, dims: Mapping[int, Tensor]) -> Any:
    """Return a slot for the parameter when only some indices of its dimensions are left.

    A number for each output (NovoGrad, Adam-mini) or rows and columns (Adafactor) are matched by their sizes, and by
    "row" and "col" in their names where the sizes do not tell.

    Args:
        name: of the slot.
        slot: what the optimizer keeps under that name.
        parameter: the parameter before slicing.
        dims: the indices to keep by dimension.

    Raises:
        ValueError: how to slice the slot is not known.
    """
    if not isinstance(slot, Tensor):
        if is_plain_data(slot):
            return slot
        raise ValueError(f"slot {name!r}, of {type(slot)}, cannot be sliced with its parameter")
    if slot.numel() == 1:
        return slot
    ways = list(_matchings(slot.shape, parameter.shape))
    if slot.dim() == parameter.dim():
        ways = [tuple(None if size == 1 else (dim, dim + 1) for dim, size in enumerate(slot.shape))]
        ways = ways if all(size in (1, whole) for size, whole in zip(slot.shape, parameter.shape)) else []
    if len({_touched(way, dims) for way in ways}) > 1:
        lower = name.lower()
        ways = ways[:1] if "row" in lower else ways[-1:] if "col" in lower else []
    if not ways:
        raise ValueError(
            f"slot {name!r} of shape {tuple(slot.shape)} cannot be sliced with its parameter of shape "
            f"{tuple(parameter.shape)}: which dimensions it stands for is not known"
        )
    return _cut(slot, ways[0], parameter.shape, dims)


def _matchings(sizes: Sequence[int], shape: Sequence[int], start: int = 0) -> Iterator[Ranges]:
    """Yield the ways in which a slot's sizes are products of some of the parameter's, in their order."""
    if not sizes:
        yield ()
        return
    if sizes[0] == 1:
        yield from ((None, *rest) for rest in _matchings(sizes[1:], shape, start))
        return
    for first in range(start, len(shape)):
        product = 1
        for last in range(first, len(shape)):
            product *= shape[last]
            if product == sizes[0]:
                yield from (((first, last + 1), *rest) for rest in _matchings(sizes[1:], shape, last + 1))


def _touched(way: Ranges, dims: Mapping[int, Tensor]) -> tuple[tuple[int, ...], ...]:
    """Return which of the sliced dimensions each dimension of a slot stands for."""
    return tuple(tuple(dim for dim in dims if span and span[0] <= dim < span[1]) for span in way)


def _cut(slot: Tensor, way: Ranges, shape: Sequence[int], dims: Mapping[int, Tensor]) -> Tensor:
    for axis, span in enumerate(way):
        if span is None:
            continue
        inner = {dim - span[0]: stay for dim, stay in dims.items() if span[0] <= dim < span[1]}
        if inner:
            whole = torch.unflatten(slot, axis, list(shape[span[0] : span[1]]))
            slot = kept_of(whole, {axis + dim: stay for dim, stay in inner.items()})
            slot = slot.flatten(axis, axis + span[1] - span[0] - 1)
    return slot
