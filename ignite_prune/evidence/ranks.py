"""Sums over all ranks of ``torch.distributed``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from ignite_prune.evidence.base import Gatherer


def world_size() -> int:
    """Return how many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def agree_on(error: Exception | None) -> None:
    """Raise on every rank where there is an error on any.

    Raises:
        ValueError: another rank failed; a rank's own error is raised as it is.
    """
    if world_size() > 1:
        failed = _summed(torch.tensor(float(error is not None)))
        if error is None and failed.item():
            raise ValueError("Gathering evidence failed on another rank; nothing was changed on this one")
    if error is not None:
        raise error


def totals(gatherer: Gatherer, replicated: bool) -> tuple[Mapping[str, Tensor], Mapping[str, float]]:
    """Return a gatherer's sums and counts over all ranks; a rank that a parameter's data never reached adds nothing.

    Args:
        gatherer: this rank's.
        replicated: every rank has gathered the same (gradients that were averaged); the mean is taken then.
    """
    ranks = world_size()
    if ranks == 1:
        return gatherer.sums, gatherer.counts
    names = list(gatherer.parameters)
    device = next(iter(gatherer.parameters.values())).device
    mine = torch.tensor([gatherer.counts.get(name, 0.0) for name in names], dtype=torch.float64, device=device)
    counts = dict(zip(names, _summed(mine).tolist()))
    sums = {}
    for name in names:
        if counts[name] > 0:
            own = gatherer.sums.get(name)
            total = _summed(gatherer.empty(name) if own is None else own)
            sums[name] = total / ranks if replicated else total
    scale = ranks if replicated else 1
    return sums, {name: count / scale for name, count in counts.items() if count > 0}


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of every rank's tensor."""
    ranks = world_size()
    return tensor if ranks == 1 else _summed(tensor) / ranks


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    if dist.get_backend() == "nccl" and total.device.type == "cpu":
        total = total.cuda()
    dist.all_reduce(total)
    return total.to(tensor.device)
