"""Checks by checksums that ranks have equal masks where they must."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from ignite_prune._utils.bits import pack
from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.shard import part_of
from ignite_prune.core.mask_store import MaskStore


def check_equal(store: MaskStore, masks: Mapping[str, Tensor], exchange: Exchange | None = None) -> None:
    """Raise on every rank if two ranks hold the same part of a parameter and other masks of it.

    Args:
        store: of the parameters.
        masks: this rank's, or its parts; those that are not named are all True.
        exchange: counts what is sent.

    Raises:
        RuntimeError: names the parameter and the ranks.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    exchange = exchange or Exchange()
    parts = {name: part_of(name, parameter) for name, parameter in store.parameters.items()}
    places = {name: zlib.crc32(repr((part.start, part.size)).encode()) for name, part in parts.items()}
    sums = {name: _checksum(masks[name]) if name in masks else 0 for name in parts}
    found = exchange.collect(torch.tensor(list(zip(places.values(), sums.values())), dtype=torch.int64), "checksums")
    for row, name in enumerate(parts):
        first = dict[int, int]()
        for rank, (place, checksum) in enumerate(found[:, row].tolist()):
            other = first.setdefault(place, rank)
            if checksum != int(found[other, row, 1]):
                raise RuntimeError(
                    f"The masks of {name!r} on ranks {other} and {rank} differ, though both hold the same part of it; "
                    "nothing was changed. Have weights of the replicas drifted apart (other seeds or data without a "
                    "reduction of gradients), or did one rank alone change masks? Load the last checkpoint on all ranks"
                )


def _checksum(mask: Tensor) -> int:
    """Return a number that other masks hardly have: a sum of the packed bytes, each with a weight of its place."""
    packed = pack(mask).to(torch.int64).add_(1)
    return int((packed * torch.arange(1, 2 * len(packed) + 1, 2).mul_(0x9E3779B1)).sum())
