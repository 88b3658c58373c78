"""What an update is going to do: masks by a saliency and its evidence, and the repairs after it. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ignite_prune.core.mask_store import MaskStore
from ignite_prune.repair.base import Passes, PrunedParameter, RepairContext
from ignite_prune.saliency import Informed, Saliency
from ignite_prune.update.choose_units import divide
from ignite_prune.update.param_groups import Group, as_unit_fraction
from ignite_prune.update.scores import ParameterScores, scorers

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence
    from ignite_prune.saliency.needs import Need

Masks = Mapping[str, Tensor | None]


@dataclass
class Plan:
    """What an update changes.

    Args:
        masks: the new masks, of the parameters that get sparser.
        values: new values of parameters and buffers, by name.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def join(self, masks: Mapping[str, Tensor]) -> None:
        """Take another group's masks too; units of several groups may lie in one parameter."""
        for name, mask in masks.items():
            self.masks[name] = mask & self.masks[name] if name in self.masks else mask


def evidence_of(model: nn.Module, groups: Sequence[Group], parameters: Mapping[str, nn.Parameter]) -> Evidence:
    """Return gatherers for all that the groups' saliencies and repairs need."""
    from ignite_prune.evidence import Evidence  # slow to import

    wanted: dict[Need, dict[str, nn.Parameter]] = {}
    for group in groups:
        needs = [*group["saliency"].needs, *(need for repair in group["repair"] for need in repair.needs)]
        for need in needs:
            wanted.setdefault(need, {}).update((name, parameters[name]) for name in group["scored"])
    return Evidence(model, wanted)


def bind(saliency: Saliency, names: Sequence[str], evidence: Evidence, masks: Masks) -> Saliency:
    """Return a saliency with its evidence, of a group's parameters."""
    if not isinstance(saliency, Informed) or not saliency.needs:
        return saliency
    found, reasons = evidence.found(saliency.need, masks), evidence.reasons(saliency.need)
    return saliency.bind({name: found[name] for name in names if name in found}, reasons)


def plan_masks(
    group: Group,
    store: MaskStore,
    before: Masks,
    evidence: Evidence,
    asked: Mapping[str, ParameterScores] | None = None,
) -> dict[str, Tensor]:
    """Return the masks that bring a group to its ``"sparsity"``, in as many steps as its saliency wants.

    Args:
        group: from :func:`ignite_prune.update.param_groups.build`, its randomness drawn.
        store: knows the parameters.
        before: the masks so far.
        evidence: what has been gathered.
        asked: scorers that have been asked already.

    Raises:
        TypeError, ValueError: see :func:`ignite_prune.update.choose_units.divide`.
    """
    saliency, planned = group["saliency"], dict[str, Tensor]()
    for target in _targets(group, before):
        now: dict[str, Tensor | None] = {**before, **planned}
        bound = {**group, "saliency": bind(saliency, group["scored"], evidence, now), "sparsity": target}
        judges = asked if asked is not None and saliency.steps == 1 else scorers(bound, store.parameters, now)
        planned |= _divided(judges, now, bound)
    if planned and saliency.once and any(mask is not None for mask in before.values()):
        raise ValueError(
            f"{type(saliency).__name__} judges a network at its initialisation, but this one is pruned already; prune "
            f"in one update (schedule.OneShot), or ask for it: saliency.{type(saliency).__name__}(anytime=True)"
        )
    return planned


def _divided(judges: Mapping[str, ParameterScores], masks: Masks, group: Group) -> dict[str, Tensor]:
    if group["structure"] is None:
        return divide(judges, masks, group)
    from ignite_prune.update.choose_coupled_units import divide_units  # slow to import

    return divide_units(judges, masks, group)


def _targets(group: Group, before: Masks) -> Iterator[float | None]:
    """The sparsities on the way, their densities of equal ratio, from that of ``before`` to the group's."""
    steps, final = group["saliency"].steps, group["sparsity"]
    if steps == 1 or final is None:
        yield final
        return
    units, living = _counted(group, before)
    pattern = group["pattern"]
    start, end = living / max(units, 1), 1 - as_unit_fraction(pattern, final)
    for step in range(1, steps + 1):
        density = start * (end / start) ** (step / steps) if start > end else end
        yield final if step == steps else (1 - density) * pattern.share


def _counted(group: Group, masks: Masks) -> tuple[int, int]:
    """Return how many units a group has, and how many of them live."""
    if group["structure"] is not None:
        kept = group["structure"].kept({name: mask for name, mask in masks.items() if mask is not None})
        return sum(len(kept[name]) for name in group["units"]), sum(int(kept[name].sum()) for name in group["units"])
    pattern, units, living = group["pattern"], 0, 0
    for name in group["params"]:
        count, mask = pattern.count(group["shapes"][name]), masks[name]
        units += count
        living += count if mask is None else int(pattern.alive(mask).count_nonzero())
    return units, living


def repaired(
    model: nn.Module,
    groups: Sequence[Group],
    store: MaskStore,
    before: Masks,
    plan: Plan,
    evidence: Evidence,
    passes: Passes | None,
) -> Plan:
    """Return a plan with its repairs, of every layer first and of the model as a whole after them."""
    patient = RepairContext(
        model,
        store.parameters,
        before,
        dict(plan.masks),
        lambda need: evidence.found(need, before),
        evidence.reasons,
        passes,
    )
    todo = [(repair, _cuts(group, plan)) for group in groups for repair in group["repair"]]
    done = set()
    for repair, cuts in sorted(todo, key=lambda each: each[0].whole):  # stable: in the order given
        if cuts and not (repair.whole and repair in done):
            repair(patient, cuts)
            done.add(repair)
    for name, mask in patient.masks.items():
        if name in patient.values:
            patient.values[name] = patient.values[name] * mask
    return replace(plan, masks=patient.masks, values=patient.values)


def _cuts(group: Group, plan: Plan) -> list[PrunedParameter]:
    return [
        PrunedParameter(name, group["saliency"], group["pattern"]) for name in group["scored"] if name in plan.masks
    ]
