"""A mask update of a model whose parameters lie on several ranks: each rank scores its parts, counts are exchanged.

The same settings choose the same masks as in one process that holds the whole weights. What is exchanged is in
:mod:`~ignite_prune._utils.sharded_top`; scores and masks stay where their parameters are.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ignite_prune._utils.exchange import Exchange
from ignite_prune._utils.shard import Part, is_sharded, like, local, reshard
from ignite_prune._utils.sharded_top import Ranking, Scored, keep_top_of_all
from ignite_prune._utils.sparsity import as_unit_fraction
from ignite_prune.allocation import ERK, Global, Isomorphic, Layer, Uniform
from ignite_prune.core.claims import check_same
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.sharded_mask_store import ShardedMaskStore
from ignite_prune.core.weight_check import WeightCheck
from ignite_prune.pattern import Block, Channel, NofM, Unstructured
from ignite_prune.pattern.base import Pattern
from ignite_prune.saliency import (
    OBD,
    SNIP,
    Bound,
    Change,
    Gradient,
    Informed,
    Magnitude,
    Movement,
    Random,
    Saliency,
    SNIPMomentum,
    Taylor,
)
from ignite_prune.saliency.from_callable import FromCallable
from ignite_prune.saliency.given import Given
from ignite_prune.saliency.needs import Gradients, Initial
from ignite_prune.update.calibration import Calibration, calibrate
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.part_saliency import PartSaliency
from ignite_prune.update.plan import GroupUpdate, Masks, UpdatePlan, drawn, merge
from ignite_prune.update.scores import ParameterScores
from ignite_prune.update.sharded_channels import ShardedChannels, summed

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence

_SALIENCIES = (
    *(Magnitude, Random, Given, FromCallable, Change),
    *(Gradient, Taylor, SNIP, SNIPMomentum, Movement, OBD),
)
_ALLOCATIONS = (Global, Uniform, ERK, Isomorphic)
_PATTERNS = (Unstructured, NofM, Block, Channel)


def check_settings(groups: Sequence[ParamGroup]) -> None:
    """Raise if a group of a sharded model has a setting that is made for whole parameters.

    Raises:
        ValueError: names the setting, and those that shards take.
    """
    for group in groups:
        _check_kind("saliency", group["saliency"], _SALIENCIES)
        _check_needs(group["saliency"])
        _check_kind("allocation", group["allocation"], _ALLOCATIONS)
        _check_kind("pattern", group["pattern"], _PATTERNS)
        for key in ("repair", "structure", "target"):
            if group[key]:
                raise ValueError(
                    f"Argument {key} needs whole parameters, but some of them are sharded (DTensors, of fully_shard or "
                    "parallelize_module): leave it out, or prune before the model is sharded"
                )


def _check_needs(saliency: Saliency) -> None:
    for need in saliency.needs:
        if not isinstance(need, Gradients | Initial) or (isinstance(need, Gradients) and need.by_unit):
            raise ValueError(
                f"Argument saliency={saliency!r:.80} needs {type(need).__name__} of whole parameters, but some of them "
                "are sharded (DTensors). With shards evidence is one number for each weight, of gradients in training: "
                "Taylor(), Movement(), OBD(EmpiricalFisher()), ..."
            )


def _check_kind(key: str, given: object, taken: tuple[type, ...]) -> None:
    if not isinstance(given, taken):
        raise ValueError(
            f"Argument {key}={given!r:.60} needs whole parameters, but some of them are sharded (DTensors, of "
            f"fully_shard or parallelize_module). With shards {key} may be {', '.join(each.__name__ for each in taken)}"
        )


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

    def has_drawn(self, drawn: list[Saliency | None]) -> None:
        """Keep what was drawn."""


@dataclass
class _Job:
    """One parameter in an update: its scores here, and what an allocation sees of it.

    Args:
        update: its group's.
        scores: of this rank's part.
        tensor: its units here and over all ranks.
        layer: its units over all ranks.
        slices: of a pattern whose units several ranks may hold parts of.
    """

    update: GroupUpdate
    scores: ParameterScores
    tensor: Scored
    layer: Layer
    slices: ShardedChannels | None = None


def planned_over_shards(pruner: Planned, targets: Sequence[float]) -> UpdatePlan:
    """Return what brings each group to its target: masks of this rank's parts; only generators have moved on.

    Raises:
        TypeError, ValueError: on every rank, naming the rank that failed and its error.
    """
    store = pruner.masks
    assert isinstance(store, ShardedMaskStore)
    exchange = store.exchange = Exchange()
    jobs, updates, error = list[_Job](), list[GroupUpdate](), None
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
                jobs += _jobs_of(update, store, seen)
        for job in jobs if any(update.is_due for update in updates) else ():
            job.tensor.scores()  # raises if they are not finite
    except Exception as raised:
        error = raised
    exchange.raise_together(error, _digest(pruner.groups, targets), "targets, saliencies, patterns and allocations")
    _count_units(jobs, exchange)
    plan = UpdatePlan()
    for update in updates:
        if update.lifts:
            held = {name: local(store.parameters[name]) for name in update.group["params"]}
            merge(plan.masks, {name: torch.ones_like(each, dtype=torch.bool) for name, each in held.items()})
    for job, units in _chosen(jobs, exchange):
        own = units if job.slices is None else job.slices.own(units).to(local(store.parameters[job.scores.name]).device)
        merge(plan.masks, {job.scores.name: job.scores.spread(own)})
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


def _jobs_of(update: GroupUpdate, store: ShardedMaskStore, before: Masks) -> list[_Job]:
    pattern, jobs = update.group["pattern"], []
    for name, scores in update.scores.items():
        part, mask = store.parts[name], before[name]
        if isinstance(pattern, Channel):
            slices = ShardedChannels(pattern, store.parameters[name], part, scores, mask)
            tensor = Scored(scores.compute, None, 0, part, 0)
            layer = Layer(name, part.shape, slices.size, scores.compute, None, 0)
            jobs.append(_Job(update, scores, tensor, layer, slices))
            continue
        units, here = unit_part(name, pattern, part), scores.layer()
        count = pattern.count(part.shape)
        total = count if mask is None else store.kept(name) if pattern.streams else -1
        tensor = Scored(here.scores, here.alive, here.living, units, total)
        layer = Layer(name, part.shape, count, here.scores, here.alive, 0)
        jobs.append(_Job(update, scores, tensor, layer))
    return jobs


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
    if isinstance(pattern, NofM):  # its groups come last
        at = pattern.dim % len(part.shape)
        start, here = [*start[:at], *start[at + 1 :], start[at]], [*here[:at], *here[at + 1 :], here[at]]
    elif len(shape) < len(start):  # a block of a convolution's matrix: all dimensions but the first are one
        start, here = [start[0], 0], [here[0], shape[1]]
    return Part(shape, tuple(start), tuple(here), part.counted)


def _unit_sizes(pattern: Pattern, shape: Sequence[int]) -> list[int]:
    """Return of how many indices along each dimension a unit is, so that a rank has to hold a multiple of them."""
    if isinstance(pattern, NofM):
        return [pattern.of if dim == pattern.dim % len(shape) else 1 for dim in range(len(shape))]
    assert isinstance(pattern, Block)
    if len(pattern.shape) == len(shape):
        return list(pattern.shape)
    return [pattern.shape[0], *shape[1:]]


def _count_units(jobs: Sequence[_Job], exchange: Exchange) -> None:
    """Set how many units of each parameter are alive over all ranks; of single entries the store has counted them."""
    split = [job for job in jobs if job.slices is not None]
    for job, tensor in zip(split, summed([job.slices for job in split if job.slices is not None], exchange)):
        job.tensor = tensor
        job.layer = replace(job.layer, scores=tensor.scores, alive=tensor.alive)
    unknown = [job for job in jobs if job.tensor.total < 0]
    if unknown:
        own = [job.tensor.living if job.tensor.part.counted else 0 for job in unknown]
        for job, total in zip(unknown, exchange.sum(torch.tensor(own, dtype=torch.int64)).tolist()):
            job.tensor.total = total
    for job in jobs:
        job.layer = replace(job.layer, living=job.tensor.total)


def _chosen(jobs: Sequence[_Job], exchange: Exchange) -> list[tuple[_Job, Tensor]]:
    """Return the units that stay, of each parameter that gets sparser: the pools of all groups in the same messages."""
    pools, floors = list[Ranking](), [0] * len(jobs)
    places = {id(job.layer): index for index, job in enumerate(jobs)}
    for update in {id(job.update): job.update for job in jobs}.values():
        layers = [job.layer for job in jobs if job.update is update]
        assert update.target is not None
        fraction = as_unit_fraction(update.group["pattern"], update.target)
        for pool in update.group["allocation"].divide(layers, fraction):
            least = pool.floors or (0,) * len(pool.layers)
            keep = max(pool.keep, sum(min(floor, layer.living) for floor, layer in zip(least, pool.layers)))
            if keep < sum(layer.living for layer in pool.layers):
                pools.append(Ranking([places[id(layer)] for layer in pool.layers], keep))
                for floor, layer in zip(least, pool.layers):
                    floors[places[id(layer)]] = floor
    found = keep_top_with_floors([job.tensor for job in jobs], pools, floors, exchange)
    return [(jobs[index], found[index]) for index in sorted(found)]


def keep_top_with_floors(
    tensors: Sequence[Scored], pools: Sequence[Ranking], floors: Sequence[int], exchange: Exchange
) -> dict[int, Tensor]:
    """Return :func:`.keep_top_of_all`'s masks, but at least ``floors[i]`` entries of tensor i."""
    masks: dict[int, Tensor] = {}
    pending = list(pools)
    while pending:
        found = keep_top_of_all(tensors, pending, exchange)
        indices = [i for pool in pending for i in pool.tensors if floors[i]]
        counts = dict.fromkeys(found, 0)
        if indices:
            own = [int(found[i].count_nonzero()) if tensors[i].part.counted else 0 for i in indices]
            counts |= zip(indices, exchange.sum(torch.tensor(own, dtype=torch.int64)).tolist())
        again = []
        for pool in pending:
            short = [i for i in pool.tensors if counts[i] < min(floors[i], tensors[i].total)]
            if not short or len(pool.tensors) == 1:
                masks |= {i: found[i] for i in pool.tensors}
                continue
            least = {i: min(floors[i], tensors[i].total) for i in short}
            again += [Ranking([i], least[i]) for i in short]  # the others' threshold only rises: these stay short
            if rest := [i for i in pool.tensors if i not in least]:
                again.append(Ranking(rest, pool.keep - sum(least.values())))
        pending = again
    return masks


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
