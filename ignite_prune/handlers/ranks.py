"""What makes every rank agree: averaged scores, one outcome, one set of masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import ignite.distributed as idist
import torch
from torch import Tensor

from ignite_prune.bits import pack, packed_size, unpack
from ignite_prune.masks import MaskStore


def several() -> bool:
    """Whether there is more than one rank."""
    return idist.get_world_size() > 1


def average(scores: Tensor) -> Tensor:
    """Return the mean of every rank's scores."""
    total = cast(Tensor, idist.all_reduce(scores.clone()))
    return total / idist.get_world_size()


def agree(plan: Callable[[], dict[str, Tensor]], masks: MaskStore) -> dict[str, Tensor]:
    """Return rank 0's planned masks on every rank, bit for bit, or raise on all where any rank's plan fails.

    Scores are equal already where they depend on data; this holds even where the ranks' weights have drifted apart.

    Raises:
        ValueError: another rank failed; a rank's own error is raised as it is.
    """
    error: Exception | None = None
    planned: dict[str, Tensor] = {}
    try:
        planned = plan()
    except Exception as raised:  # told to the others first: none must wait for this rank
        error = raised
    failed = idist.all_reduce(float(error is not None))
    if error is not None:
        raise error
    if failed:
        raise ValueError("The mask update was refused on another rank; nothing was pruned on this one")
    return _of_rank_0(planned, masks)


def _of_rank_0(planned: Mapping[str, Tensor], masks: MaskStore) -> dict[str, Tensor]:
    bits = torch.cat([pack(planned.get(name, masks[name])) for name in masks])
    bits = cast(Tensor, idist.broadcast(bits.to(idist.device()), src=0)).cpu()
    agreed, start = {}, 0
    for name, parameter in masks.parameters.items():
        size = packed_size(parameter.numel())
        flat = unpack(bits[start : start + size].to(parameter.device), parameter.numel())
        agreed[name] = flat.view(parameter.shape)
        start += size
    return agreed
