"""Which units of a pattern lie on a rank that holds a part of a parameter's entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ignite_prune._utils.shard import Part
from ignite_prune.pattern import Block, Unstructured
from ignite_prune.pattern.base import Pattern


def unit_part(name: str, pattern: Pattern, part: Part) -> Part:
    """Return which of a parameter's units lie on this rank, from which of its entries do.

    Raises:
        ValueError: a unit is split between ranks; says which sharding leaves units whole.
    """
    if isinstance(pattern, Unstructured):
        return part
    shape = tuple(pattern.alive(torch.empty(part.shape, dtype=torch.bool, device="meta")).shape)
    sizes = _unit_sizes(pattern, part.shape)
    for dim, size in enumerate(sizes):
        if part.start[dim] % size or part.size[dim] % size:
            raise ValueError(
                f"{pattern} has units of {size} along dimension {dim} of parameter {name!r}, which are split: "
                f"this rank holds {part.size[dim]} of {part.shape[dim]} from {part.start[dim]} on. Shard another "
                "dimension, fully_shard(shard_placement_fn=lambda parameter: Shard(dim)), or over a number of ranks "
                f"that leaves each a multiple of {size}"
            )
    start = [first // size for first, size in zip(part.start, sizes)]
    here = [length // size for length, size in zip(part.size, sizes)]
    if pattern.entry_groups is not None:  # whose unit scores have the groups last
        at = pattern.entry_groups.dim % len(part.shape)
        start, here = [*start[:at], *start[at + 1 :], start[at]], [*here[:at], *here[at + 1 :], here[at]]
    elif len(shape) < len(start):  # a block of a convolution's matrix: all dimensions but the first are one
        start, here = [start[0], 0], [here[0], shape[1]]
    return Part(shape, tuple(start), tuple(here), part.counted)


def _unit_sizes(pattern: Pattern, shape: Sequence[int]) -> list[int]:
    """Return of how many indices along each dimension a unit is, so that a rank has to hold a multiple of them."""
    groups = pattern.entry_groups
    if groups is not None:
        return [groups.of if dim == groups.dim % len(shape) else 1 for dim in range(len(shape))]
    assert isinstance(pattern, Block)
    if len(pattern.shape) == len(shape):
        return list(pattern.shape)
    return [pattern.shape[0], *shape[1:]]
