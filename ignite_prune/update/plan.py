"""UpdatePlan: the new masks and repaired values of an update, which :func:`carry_out` applies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ignite_prune._utils.bits import is_masked
from ignite_prune._utils.shard import local, reshard
from ignite_prune._utils.sparsity import as_unit_fraction
from ignite_prune.core.dense_values import DenseValues
from ignite_prune.core.mask_enforcer import MaskEnforcer
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.selection import named_parameters
from ignite_prune.repair.base import Passes, PrunedParameter, RepairContext
from ignite_prune.saliency import Informed, Saliency
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.param_groups import pattern_of
from ignite_prune.update.scores import ParameterScores, choose_masks

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence
    from ignite_prune.saliency.needs import Need

Masks = Mapping[str, Tensor | None]
"""Masks by name, None where nothing is pruned."""


@dataclass
class UpdatePlan:
    """What an update changes.

    Args:
        masks: the new masks of the parameters that get sparser.
        values: new values of parameters and buffers, by name.
        replaced: of the masks, see :meth:`.MaskStore.replaced`; computed last, as ``dense``.
        dense: values of pruned entries, see :meth:`.DenseValues.remembered`.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class GroupUpdate:
    """One group's part in an update.

    Args:
        group: the group.
        target: the sparsity to reach; None: what the allocation sets itself.
        saliency: the group's, its randomness drawn; evidence is not bound.
        scores: of each scored parameter, evidence bound.
        lifts: whether a dense phase begins: the masks so far are removed first.
        is_due: whether it may prune something; False if the last update reached just this target.
    """

    group: ParamGroup
    target: float | None
    saliency: Saliency
    scores: dict[str, ParameterScores] = field(default_factory=dict)
    lifts: bool = False
    is_due: bool = True


def drawn(group: ParamGroup, generator: torch.Generator | None, advance: bool = True) -> Saliency:
    """Return a group's saliency with its randomness fixed by a generator.

    Args:
        group: the group.
        generator: None: torch's default generator.
        advance: False draws from a copy of the generator, which stays where it is.
    """
    saliency = group["saliency"]
    if not saliency.randomised:
        return saliency
    if generator is not None and not advance:
        state, generator = generator.get_state(), torch.Generator(device=generator.device)
        generator.set_state(state)
    return saliency.draw(torch.default_generator if generator is None else generator)


def evidence_of(
    model: nn.Module, groups: Sequence[ParamGroup], parameters: Mapping[str, nn.Parameter], from_data: bool = False
) -> Evidence | None:
    """Return the evidence that the groups' saliencies and repairs need; None where they need none."""
    wanted: dict[Need, dict[str, nn.Parameter]] = {}
    for group in groups:
        formula = group["saliency"]
        asked = formula.needs if isinstance(formula, Informed) else ()
        for need in (*asked, *(need for repair in group["repair"] for need in repair.needs)):
            wanted.setdefault(need, {}).update((name, parameters[name]) for name in group["scored"])
    if not wanted:
        return None
    from ignite_prune.evidence import Evidence  # slow to import

    return Evidence(model, wanted, from_data)


def bind(saliency: Saliency, names: Sequence[str], evidence: Evidence, masks: Masks) -> Saliency:
    """Return a saliency with its evidence about the parameters named."""
    if not isinstance(saliency, Informed) or not saliency.needs:
        return saliency
    found, reasons = evidence.found(saliency.need, masks), evidence.reasons(saliency.need)
    return saliency.bind({name: found[name] for name in names if name in found}, reasons)


def bound_scores(
    group: ParamGroup, saliency: Saliency, store: MaskStore, masks: Masks, evidence: Evidence | None
) -> dict[str, ParameterScores]:
    """Return the scores of a group's parameters by a saliency and its evidence."""
    bound = saliency if evidence is None else bind(saliency, group["scored"], evidence, masks)
    scores = {}
    for name in group["scored"]:
        turned = name in group["inputs_first"]
        pattern = pattern_of(group, name) if turned else group["pattern"]
        scores[name] = ParameterScores(name, store.parameters[name], bound, pattern, masks[name], turned)
    return scores


def plan_masks(update: GroupUpdate, store: MaskStore, before: Masks, evidence: Evidence | None) -> dict[str, Tensor]:
    """Return the masks that bring a group to its target, in as many steps as its saliency asks for.

    Args:
        update: the group, its target and its scores.
        store: of the parameters.
        before: the masks so far; those of the result nest in them.
        evidence: what has been gathered.

    Raises:
        TypeError, ValueError: see :func:`.choose_masks`.
    """
    group, saliency = update.group, update.saliency
    pattern, planned = group["pattern"], dict[str, Tensor]()
    if update.lifts:
        if update.target == 0:  # nothing is scored, and there may be no evidence
            return {name: torch.ones_like(store[name]) for name in group["params"]}
        before = dict.fromkeys(before)
    for target in _targets(update, before) if saliency.steps > 1 else (update.target,):
        scores, now = update.scores, before
        if saliency.steps > 1:
            now = {**before, **planned}
            scores = bound_scores(group, saliency, store, now, evidence)
            scores = {name: each for name, each in scores.items() if name in update.scores}
        if group["structure"] is None:
            fraction = as_unit_fraction(pattern, pattern.share if target is None else target)
            planned |= choose_masks(scores, group["allocation"], fraction)
        else:
            from ignite_prune.update.choose_coupled_units import choose_coupled_masks  # slow to import

            planned |= choose_coupled_masks(scores, now, group, target)
    if saliency.once and planned and any(mask is not None for mask in before.values()):
        raise ValueError(
            f"{type(saliency).__name__} scores a network at its initialisation, but this one is pruned already; prune "
            f"in one update (schedule.OneShot), or ask for it: saliency.{type(saliency).__name__}(anytime=True)"
        )
    if update.lifts:
        return {name: torch.ones_like(store[name]) for name in group["params"]} | planned
    return planned


def merge(masks: dict[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Add another group's masks to ``masks``; coupled units of several groups may lie in one parameter."""
    for name, mask in others.items():
        masks[name] = mask & masks[name] if name in masks else mask


def _targets(update: GroupUpdate, before: Masks) -> Iterator[float | None]:
    """Yield the sparsities on the way; their densities have an equal ratio, from that of ``before`` to the target."""
    steps, final, pattern = update.saliency.steps, update.target, update.group["pattern"]
    if final is None:
        yield final
        return
    units, living = _counted(update.group, before)
    start, end = living / max(units, 1), 1 - as_unit_fraction(pattern, final)
    for step in range(1, steps + 1):
        density = start * (end / start) ** (step / steps) if start > end else end
        yield final if step == steps else (1 - density) * pattern.share


def _counted(group: ParamGroup, masks: Masks) -> tuple[int, int]:
    """Return the number of a group's units, and how many of them are not pruned."""
    structure, pattern = group["structure"], group["pattern"]
    if structure is not None:
        kept = structure.kept({name: mask for name, mask in masks.items() if mask is not None})
        return sum(len(kept[name]) for name in group["units"]), sum(int(kept[name].sum()) for name in group["units"])
    units = living = 0
    for name in group["params"]:
        pattern, mask = pattern_of(group, name), masks[name]
        count = pattern.count(group["shapes"][name])
        units += count
        living += count if mask is None else int(pattern.alive(mask).count_nonzero())
    return units, living


def repaired(
    model: nn.Module,
    groups: Sequence[ParamGroup],
    store: MaskStore,
    before: Masks,
    plan: UpdatePlan,
    evidence: Evidence | None,
    passes: Passes | None,
    overwrite: bool = False,
) -> UpdatePlan:
    """Return a plan with its repairs: those of single layers first, then those of the whole model.

    The arguments are those of :class:`.RepairContext`; ``overwrite``: evidence may be overwritten.
    """
    context = RepairContext(
        model,
        store.parameters,
        before,
        dict(plan.masks),
        lambda need: {} if evidence is None else evidence.found(need, before),
        lambda need: {} if evidence is None else evidence.reasons(need),
        passes,
    )
    todo = [(repair, _pruned(group, plan, before)) for group in groups for repair in group["repair"]]
    done = set()
    todo.sort(key=lambda each: each[0].whole)  # stable: in the order given
    for index, (repair, pruned) in enumerate(todo):
        context.overwrite = overwrite and index == len(todo) - 1
        if pruned and not (repair.whole and repair in done):
            repair(context, pruned)
            done.add(repair)
    for name, mask in context.masks.items():
        if name in context.values:
            value = context.values[name]  # never written to: a repair may have given a tensor that it keeps
            context.values[name] = value if is_masked(value, mask) else value * mask
    return UpdatePlan(context.masks, context.values)


def _pruned(group: ParamGroup, plan: UpdatePlan, before: Masks) -> list[PrunedParameter]:
    """Return the parameters in which an update prunes something; there may be no evidence for one that it fills up."""
    names = [name for name in group["scored"] if name in plan.masks and _is_sparser(plan.masks[name], before[name])]
    return [PrunedParameter(name, group["saliency"], pattern_of(group, name)) for name in names]


def _is_sparser(mask: Tensor, before: Tensor | None) -> bool:
    return not bool((mask if before is None else mask | ~before).all())


@torch.no_grad()
def write_values(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write new values into a model's parameters and buffers."""
    reshard(model)
    parameters, buffers = named_parameters(model), dict(model.named_buffers())
    for name, value in values.items():
        local(parameters[name] if name in parameters else buffers[name]).copy_(value)


class PlanTarget(Protocol):
    """What :func:`carry_out` changes; see :class:`~ignite_prune.update.pruner.Pruner`."""

    model: nn.Module
    groups: list[ParamGroup]
    masks: MaskStore
    dense: DenseValues | None
    enforcer: MaskEnforcer
    evidence: Evidence | None
    reached_at: dict[str, tuple[float | None, int]]
    partial: set[str]
    on_commit: list[Callable[[list[float | None], Sequence[float]], None]]


def carry_out(
    pruner: PlanTarget,
    plan: UpdatePlan,
    targets: Sequence[float],
    former: list[float | None],
    whole: bool,
    done: Callable[[], None] | None,
) -> None:
    """Change masks, weights, gradients, optimizer slots, buffers and targets of a pruner; it may be repeated.

    The arguments are those of :meth:`.Pruner.update`; ``former`` are the targets so far.
    """
    vars(pruner.masks).update(plan.replaced)
    for group, target in zip(pruner.groups, targets):
        group["sparsity"] = target
    if pruner.dense is not None:
        pruner.dense.load(plan.dense)
    if plan.values:
        write_values(pruner.model, plan.values)
    pruner.enforcer.install()
    pruner.enforcer.apply()
    if plan.masks and pruner.evidence is not None:
        pruner.evidence.used()
    now = pruner.masks.changes
    met = {group["scored"][0]: (target, now) for group, target in zip(pruner.groups, targets)} if whole else {}
    pruner.reached_at = {first: each for first, each in met.items() if first not in pruner.partial}
    for call in pruner.on_commit:
        call(former, targets)
    if done is not None:
        done()
