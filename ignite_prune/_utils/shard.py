"""Which part of a tensor lies on this rank: parameters of ``fully_shard`` and ``parallelize_module`` are DTensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)
"""Types of tensors that are no DTensors; comparing them first saves a call for each tensor."""


def is_sharded(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor; without importing them, which takes seconds."""
    if type(tensor) in PLAIN:
        return False
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, vars(loaded).get("DTensor", ()))


def local(tensor: Tensor) -> Tensor:
    """Return the part of a DTensor on this rank, which shares its memory; any other tensor itself."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def collected(tensor: Tensor) -> Tensor:
    """Return a DTensor as a whole, which takes a collective; any other tensor itself."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(part: Tensor, tensor: Tensor) -> Tensor:
    """Return a DTensor that lies as ``tensor`` does and whose part on this rank is ``part``."""
    from torch.distributed.tensor import DTensor  # slow to import

    given: Any = tensor
    stride = torch.empty(given.shape, device="meta").stride()
    return DTensor.from_local(
        part, given.device_mesh, given.placements, run_check=False, shape=given.shape, stride=stride
    )


@dataclass(frozen=True)
class Part:
    """A box of a tensor: what one rank holds.

    Args:
        shape: of the whole tensor.
        start: first index along each dimension.
        size: number of indices along each dimension.
        counted: whether this rank counts it; of ranks with equal parts one does.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]
    counted: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole tensor."""
        return self.size == self.shape

    def of(self, tensor: Tensor) -> Tensor:
        """Return this part of a whole tensor, as a view."""
        for dim, (first, size) in enumerate(zip(self.start, self.size)):
            tensor = tensor.narrow(dim, first if size else 0, size)
        return tensor

    def positions(self, places: Tensor) -> Tensor:
        """Return the flat indices in the whole tensor of flat indices in the part.

        Example:
            >>> Part((4, 3), (2, 1), (2, 2)).positions(torch.tensor([0, 3]))
            tensor([ 7, 11])
        """
        if self.is_whole:
            return places
        found, left, step = torch.zeros_like(places), places, 1
        for whole, first, size in zip(reversed(self.shape), reversed(self.start), reversed(self.size)):
            found = found + (left % max(size, 1) + first) * step
            left, step = left // max(size, 1), step * whole
        return found


def part_of(name: str, tensor: Tensor) -> Part:
    """Return which part of a parameter lies on this rank.

    Raises:
        ValueError: it has partial placements, or is split in a way that leaves no box on a rank.
    """
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return Part(shape, (0,) * len(shape), shape)
    given: Any = tensor
    mesh, placements = given.device_mesh, given.placements
    if any(each.is_partial() for each in placements):
        raise ValueError(
            f"Parameter {name!r} has the placements {placements}: a partial one is a sum that is still to be taken, "
            "of which no entry is known; redistribute it to Shard(dim) or Replicate() first"
        )
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError(f"Parameter {name!r} lies on the mesh {mesh}, which rank {torch.distributed.get_rank()} lacks")
    start, size = [0] * len(shape), list(shape)
    for index in _order(placements):
        dim = placements[index].dim
        chunk = -(-size[dim] // mesh.size(index))  # as torch.chunk
        first = min(chunk * coordinate[index], size[dim])
        start[dim], size[dim] = start[dim] + first, min(chunk, size[dim] - first)
    if tuple(size) != tuple(local(tensor).shape):
        raise ValueError(
            f"Parameter {name!r} has {tuple(local(tensor).shape)} on this rank, where the placements {placements} of "
            f"{shape} on {mesh} should give {tuple(size)}; shard it by fully_shard or parallelize_module"
        )
    return Part(shape, tuple(start), tuple(size))


def _order(placements: Sequence[Any]) -> list[int]:
    """Return the mesh dimensions that split a tensor, in the order in which they do.

    A strided shard, of ``fully_shard`` on top of ``parallelize_module``, splits what the dimensions to its right leave.
    """
    order: list[int] = []
    for index, placement in enumerate(placements):
        if not placement.is_replicate():
            order.append(index)
    strided = [index for index in order if type(placements[index]).__name__ == "_StridedShard"]
    return [index for index in order if index not in strided] + strided[::-1]


def reshard(model: nn.Module) -> None:
    """Put the shards of ``fully_shard`` back into a model whose last forward pass left whole parameters in it."""
    loaded = sys.modules.get("torch.distributed.fsdp")
    kind = () if loaded is None else vars(loaded).get("FSDPModule", ())
    for module in model.modules() if kind else ():
        if isinstance(module, kind):
            module.reshard()
