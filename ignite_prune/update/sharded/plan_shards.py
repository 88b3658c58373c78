"""A mask update of a model whose parameters lie on several ranks: each rank scores its parts, counts are exchanged.

The same settings choose the same masks as in one process that holds the whole weights. What is exchanged is in
:mod:`~ignite_prune._utils.sharded_top`; scores and masks stay where their parameters are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.shard import is_sharded, like, local, reshard
from ignite_prune._utils.sparsity import as_unit_fraction
from ignite_prune.core.claims import check_same
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.sharded_mask_store import ShardedMaskStore
from ignite_prune.core.weight_check import WeightCheck
from ignite_prune.saliency import Bound, Informed, Saliency
from ignite_prune.update.calibration import Calibration, calibrate
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.plan import GroupUpdate, Masks, UpdatePlan, drawn, merge
from ignite_prune.update.scores import ParameterScores
from ignite_prune.update.sharded.choice import chosen
from ignite_prune.update.sharded.coupled_units import CoupledUpdate, coupled_masks, coupled_update
from ignite_prune.update.sharded.division import check_scores
from ignite_prune.update.sharded.job import Job, count_units, jobs_of
from ignite_prune.update.sharded.part_saliency import PartSaliency

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence


class Planned(Protocol):
    """What is planned for; see :class:`~ignite_prune.update.pruner.Pruner`."""

    model: nn.Module
    groups: list[ParamGroup]
    masks: MaskStore
    weights: WeightCheck
    evidence: Evidence | None
    calibration: Calibration

    def generator_states(self) -> list[Tensor | None]:
        """Return the states of the groups' generators."""

    def set_generator_states(self, states: Sequence[Any]) -> None:
        """Set them."""

    def is_due(self, group: ParamGroup, target: float) -> bool:
        """Return whether an update may prune something."""

    def leave_out(self, update: GroupUpdate, evidence: Evidence | None) -> None:
        """Leave frozen parameters without evidence out of an update."""

    def kept_units(self) -> Mapping[str, Tensor]:
        """Return which units of a structure are left."""

    def has_drawn(self, drawn: list[Saliency | None]) -> None:
        """Keep what was drawn."""


def planned_over_shards(pruner: Planned, targets: Sequence[float]) -> UpdatePlan:
    """Return what brings each group to its target: masks of this rank's parts; only generators have moved on.

    Raises:
        TypeError, ValueError: on every rank, naming the rank that failed and its error.
    """
    store = pruner.masks
    assert isinstance(store, ShardedMaskStore)
    exchange = store.exchange = Exchange()
    jobs, coupled, updates, error = list[Job](), list[CoupledUpdate](), list[GroupUpdate](), None
    store.settle()
    _same_generators(pruner, exchange)
    try:
        reshard(pruner.model)
        check_same(pruner.model, store.parameters, "PruneHandler, with masks=pruner.masks")
        for group, target in zip(pruner.groups, targets):
            as_unit_fraction(group["pattern"], target)
        before = store.so_far()
        if any(mask is not None for mask in before.values()):
            pruner.weights.all()
        updates = [_update_of(pruner, group, target) for group, target in zip(pruner.groups, targets)]
        if pruner.evidence is not None and any(update.is_due for update in updates):
            if pruner.calibration.data is not None:
                calibrate(pruner.evidence, pruner.calibration, [group["saliency"] for group in pruner.groups])
            pruner.evidence.sum_over_ranks(averaged=True)
        for update in updates:
            if update.is_due and update.target != 0:
                seen = dict.fromkeys(before) if update.lifts else before
                update.scores = scores_of_parts(update.group, update.saliency, store, seen, pruner.evidence)
                if update.saliency.needs:
                    pruner.leave_out(update, pruner.evidence)
                if update.group["structure"] is None:
                    jobs += jobs_of(update, store, seen)
                else:
                    coupled.append(coupled_update(update, store))
        for job in jobs if any(update.is_due for update in updates) else ():
            job.tensor.scores()  # raises if they are not finite
            check_scores(job.update.group["allocation"], job.tensor)
    except Exception as raised:
        error = raised
    exchange.raise_together(error, _digest(pruner.groups, targets), "targets, saliencies, patterns and allocations")
    count_units(jobs, exchange)
    plan = UpdatePlan()
    for update in updates:
        if update.lifts:
            held = {name: local(store.parameters[name]) for name in update.group["params"]}
            merge(plan.masks, {name: torch.ones_like(each, dtype=torch.bool) for name, each in held.items()})
    for job, mask in chosen(jobs, exchange):
        merge(plan.masks, {job.scores.name: mask})
    for masks in coupled_masks(coupled, pruner.kept_units(), store, exchange) if coupled else ():
        merge(plan.masks, masks)
    pruner.has_drawn([update.saliency if update.group["saliency"].randomised else None for update in updates])
    return plan


def _digest(groups: Sequence[ParamGroup], targets: Sequence[float]) -> int:
    """Return a number that is equal on ranks that are asked for the same."""
    settings = [(type(group["saliency"]).__name__, group["pattern"], group["allocation"]) for group in groups]
    return zlib.crc32(repr((list(targets), settings)).encode())


def _same_generators(pruner: Planned, exchange: Exchange) -> None:
    """Take the states of rank 0's generators: ranks have seeds of their own, for their data."""
    states = [state for state in pruner.generator_states() if state is not None]
    if not states:
        return
    held = torch.cat([state.cpu() for state in states]).to(torch.int32)
    found = exchange.sum(held if exchange.rank == 0 else torch.zeros_like(held), "generators").to(torch.uint8)
    parts = iter(torch.split(found, [len(state) for state in states]))
    pruner.set_generator_states([None if s is None else next(parts) for s in pruner.generator_states()])


def _update_of(pruner: Planned, group: ParamGroup, target: float) -> GroupUpdate:
    saliency, schedule = drawn(group, group["generator"]), group["schedule"]
    lifts = schedule is not None and schedule.regrows and target < (group["sparsity"] or 0.0)
    return GroupUpdate(group, target, saliency, {}, lifts, pruner.is_due(group, target) or lifts)


def scores_of_parts(
    group: ParamGroup, saliency: Saliency, store: ShardedMaskStore, masks: Masks, evidence: Evidence | None
) -> dict[str, ParameterScores]:
    """Return the scores of this rank's parts of a group's parameters, by a saliency and its evidence."""
    if evidence is not None and isinstance(saliency, Informed) and saliency.needs:
        found, reasons = evidence.found(saliency.need, masks), evidence.reasons(saliency.need)
        saliency = Bound(saliency, found, reasons)  # not normalised over parameters, of which this rank holds parts
    return {
        name: ParameterScores(
            name,
            local(store.parameters[name]),
            PartSaliency(saliency, store.parameters[name], store.parts[name]),
            group["pattern"],
            masks[name],
        )
        for name in group["scored"]
    }


def scores_over_shards(pruner: Planned, last: Sequence[Saliency | None]) -> dict[str, Tensor]:
    """Return every scored parameter's saliency as of now, sharded as the parameter; ``last`` were drawn."""
    store, answer = pruner.masks, dict[str, Tensor]()
    assert isinstance(store, ShardedMaskStore)
    for group, before in zip(pruner.groups, last):
        saliency = before or drawn(group, group["generator"], advance=False)
        found = scores_of_parts(group, saliency, store, store.so_far(), pruner.evidence)
        for name, scores in found.items():
            parameter = store.parameters[name]
            answer[name] = like(scores.compute(), parameter) if is_sharded(parameter) else scores.compute()
    return answer
