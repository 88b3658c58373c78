"""The reduction of running sums over all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ignite_prune._utils.distributed import all_gather, all_reduce, broadcast, raise_together, rank, world_size
from ignite_prune.evidence.running_sums import RunningSums, Zeros

FAILED = "Gathering evidence failed on another rank; nothing was changed on this one"
Counted = Mapping[str, tuple[float, tuple[int, ...]]]
"""The count and the form of each parameter's sum on one rank, by name."""
Totals = tuple[Mapping[str, Tensor], Mapping[str, float]]
"""Sums and counts by parameter name."""


def totals(record: RunningSums, zeros: Zeros, key: str, *, replicated: bool, shared: bool) -> Totals:
    """Return sums and counts over all ranks; a rank without data for a parameter adds nothing.

    Args:
        record: of this rank.
        zeros: returns zeros in the form of a parameter's sum.
        key: names the evidence in an error.
        replicated: all ranks have the same sums (of averaged gradients), so the result is their mean.
        shared: all ranks have the same sums (of the model's own values), so the result is one rank's.

    Raises:
        ValueError: ranks use a parameter in ways that do not add up; on all ranks.
    """
    if world_size() == 1:
        return record.sums, record.counts
    ranks, sums, counts = _counted(record), dict[str, Tensor](), dict[str, float]()
    equals = len(ranks) if replicated else 1
    for name in record.parameters:
        having = [each for each, counted in enumerate(ranks) if name in counted]
        if not having:
            continue
        _take_form(record, name, key, [ranks[each][name][1] for each in having])
        own = _own_sum(record, name, zeros, having)
        if shared:  # a mean of equal values would be rounded
            sums[name], counts[name] = broadcast(own, having[0]), 1.0
        else:
            sums[name] = all_reduce(own).div_(equals)
            counts[name] = sum(ranks[each][name][0] for each in having) / equals
    return sums, counts


def _counted(record: RunningSums) -> Sequence[Counted]:
    """Return what each rank has; stale sums count only if no rank has new ones."""
    mine = {n: (count, record.forms.get(n, ())) for n, count in record.counts.items() if count > 0}
    gathered = all_gather((record.stale, mine))
    none_new = all(stale for stale, _ in gathered)
    return [counted if none_new or not stale else {} for stale, counted in gathered]


def _take_form(record: RunningSums, name: str, key: str, forms: Sequence[tuple[int, ...]]) -> None:
    if len(set(forms)) > 1:
        raise ValueError(
            f"{key} of parameter {name!r} cannot be added up: ranks use it in different ways (with other groups or "
            "heads, or the other way round)"
        )
    if forms[0]:
        record.forms[name] = forms[0]


def _own_sum(record: RunningSums, name: str, zeros: Zeros, having: Sequence[int]) -> Tensor:
    """Return this rank's sum, or zeros if it has none."""
    own, error = record.sums.get(name) if rank() in having else None, None
    try:
        own = zeros(name) if own is None else own
    except Exception as raised:  # this rank may lack the memory
        error = raised
    if len(having) < world_size():
        raise_together(error, FAILED)
    assert own is not None
    return own
