"""Sums over all ranks of ``torch.distributed``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch import Tensor

from ignite_prune._utils.distributed import all_gather, all_reduce, broadcast, raise_together, world_size
from ignite_prune.evidence.collectors.base import Gatherer

FAILED = "Gathering evidence failed on another rank; nothing was changed on this one"
Told = Mapping[str, tuple[float, tuple[int, ...]]]
"""What one rank has: the count and the form of each parameter's sums, by name."""


def totals(gatherer: Gatherer, replicated: bool) -> tuple[Mapping[str, Tensor], Mapping[str, float]]:
    """Return a gatherer's sums and counts over all ranks; a rank that a parameter's data never reached adds nothing.

    Args:
        gatherer: this rank's.
        replicated: every rank has gathered the same (gradients that were averaged); the mean is taken then.

    Raises:
        ValueError: ranks use a parameter in ways that do not add up; on all ranks.
    """
    if world_size() == 1:
        return gatherer.sums, gatherer.counts
    ranks, sums, counts = _told(gatherer), dict[str, Tensor](), dict[str, float]()
    equals = len(ranks) if replicated else 1
    for name in gatherer.parameters:
        seen = [rank for rank, told in enumerate(ranks) if name in told]
        if not seen:
            continue
        _learn(gatherer, name, [ranks[rank][name][1] for rank in seen])
        own = _own(gatherer, name, seen)
        if gatherer.shared:  # one rank's value, as it is: a mean of equals would be rounded
            sums[name], counts[name] = broadcast(own, seen[0]), 1.0
        else:
            sums[name] = all_reduce(own).div_(equals)
            counts[name] = sum(ranks[rank][name][0] for rank in seen) / equals
    return sums, counts


def _told(gatherer: Gatherer) -> Sequence[Told]:
    """Return what each rank has; where some have something new, what an update has used on others is nothing."""
    mine = {n: (count, gatherer.forms.get(n, ())) for n, count in gatherer.counts.items() if count > 0}
    gathered = all_gather((gatherer.stale, mine))
    none_new = all(stale for stale, _ in gathered)
    return [told if none_new or not stale else {} for stale, told in gathered]


def _learn(gatherer: Gatherer, name: str, forms: Sequence[tuple[int, ...]]) -> None:
    if len(set(forms)) > 1:
        raise ValueError(
            f"{gatherer.need.key} of parameter {name!r} cannot be added up: ranks use it in different ways (with "
            "other groups or heads, or the other way round)"
        )
    if forms[0]:
        gatherer.forms[name] = forms[0]


def _own(gatherer: Gatherer, name: str, seen: Sequence[int]) -> Tensor:
    """Return this rank's sums, zeros where it is none of those that have seen the parameter."""
    own, error = gatherer.sums.get(name) if dist.get_rank() in seen else None, None
    try:
        own = gatherer.empty(name) if own is None else own
    except Exception as raised:  # this rank may lack the memory
        error = raised
    if len(seen) < world_size():
        raise_together(error, FAILED)
    assert own is not None
    return own
