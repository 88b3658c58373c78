"""ParamGroup: which parameters are pruned together, and with which settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch

from ignite_prune.allocation import Allocation
from ignite_prune.pattern import Pattern
from ignite_prune.repair.base import Repair
from ignite_prune.saliency import Saliency
from ignite_prune.schedule import Schedule

if TYPE_CHECKING:
    from ignite_prune.structure import Cost, Structure

UNSET = float("0")
"""The ``"sparsity"`` of groups until it is set: 0, an object of its own."""


class ParamGroup(TypedDict):
    """One group: the user's settings, and derived entries. A plain dict at run time.

    Args:
        params: names of the parameters that are masked.
        scored: names of those that are scored: the same, unless a structure's units reach into other parameters.
        shapes: the shape of each of ``params``.
        inputs_first: those of ``params`` that store inputs in dim 0 and outputs in dim 1.
        units: with a structure, the names of its unit groups that may shrink; otherwise empty.
        sparsity: the target of the next update; None only in one shot, with an allocation that sets its own.
        saliency, schedule, pattern, allocation, keep_dense, generator, repair, structure, target, unreached: see
            :class:`~ignite_prune.PruneHandler`.
    """

    params: list[str]
    scored: list[str]
    shapes: dict[str, tuple[int, ...]]
    inputs_first: frozenset[str]
    units: list[str]
    sparsity: float | None
    saliency: Saliency
    schedule: Schedule | None
    pattern: Pattern
    allocation: Allocation
    keep_dense: bool
    generator: torch.Generator | None
    repair: tuple[Repair, ...]
    structure: Structure | None
    target: Cost | None
    unreached: str
