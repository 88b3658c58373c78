"""Pruner: the pruning state of one model, and its updates; ``PruneHandler`` attaches it to an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.commit import to_the_end
from ignite_prune._utils.distributed import raise_together
from ignite_prune._utils.shard import is_sharded
from ignite_prune._utils.sparsity import as_sparsity, as_unit_fraction
from ignite_prune.core.dense_values import DenseValues
from ignite_prune.core.mask_enforcer import MaskEnforcer
from ignite_prune.core.mask_store import MaskStore, check_same
from ignite_prune.core.optimizers import check_held
from ignite_prune.core.selection import named_parameters
from ignite_prune.core.weight_check import WeightCheck
from ignite_prune.update.agreement import REFUSED, agree, average_scores, check_same_parameters
from ignite_prune.update.calibration import Calibration, calibrate
from ignite_prune.update.left_out import leave_out, warn_of_left_out
from ignite_prune.update.param_groups import ParamGroup, build
from ignite_prune.update.plan import (
    GroupUpdate,
    UpdatePlan,
    bound_scores,
    carry_out,
    drawn,
    evidence_of,
    merge,
    plan_masks,
    repaired,
    write_values,
)

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence
    from ignite_prune.saliency import Saliency
    from ignite_prune.structure import Structure


REMAKE = "PruneHandler, with masks=pruner.masks"  # where the model's parameters were replaced


class Pruner:
    """Groups, masks, kept values, hooks and evidence over the parameters of one model.

    An update is planned first and then carried out: if planning raises, nothing has changed.

    Args:
        model: unwrapped.
        optimizers: those that train it.
        params, settings: see :func:`ignite_prune.update.param_groups.build`.
        calibration: what evidence and repairs are computed from; without data, the handler gathers it from training.
        masks, strict: as of ``PruneHandler``.

    Attributes:
        given, groups: the user's selection and settings, and the parameter groups that were made of them.
        masks: the mask store, which owns the parameters.
        enforcer: the hooks.
        weights: verifies that pruned weights are 0.
        dense: the values of pruned entries, with ``keep_dense=True`` in a group; else None.
        evidence: what the saliencies and repairs need; None where they need nothing.
        is_informed: whether a group has a saliency or repair that may need evidence.
        verify: when the ranks' masks are compared, see ``PruneHandler``.
        reached_at: by a group's first scored name, what the last update reached, at which change of the masks.
        partial: first scored names of the groups whose last update left frozen parameters out.
        on_commit: functions of the former and the new targets, called when an update has been carried out.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        params: Any,
        settings: Mapping[str, Any],
        calibration: Calibration,
        masks: Mapping[str, Tensor] | None = None,
        strict: bool = False,
    ) -> None:
        self.model, self.optimizers, self.calibration = model, optimizers, calibration
        self.on_commit: list[Callable[[list[float | None], Sequence[float]], None]] = []
        self.given = params, settings
        self.groups: list[ParamGroup] = build(model, params, sharded=True, **settings)
        self.structure: Structure | None = self.groups[0]["structure"]
        everything = named_parameters(model)
        chosen = {name: everything[name] for group in self.groups for name in group["params"]}
        check_held(chosen, optimizers)
        shapes = {} if self.structure is None else self.structure.origin.shapes
        if self.structure is not None and masks is not None:  # masks of a part of a unit are extended to the unit
            whole = self.structure.masks(self.structure.kept(masks))
            masks = {name: whole[name] for name in chosen}
        store = MaskStore
        if any(is_sharded(parameter) for parameter in chosen.values()):
            from ignite_prune.core.sharded_mask_store import ShardedMaskStore as store  # slow to import
            from ignite_prune.update.sharded import check_settings

            check_settings(self.groups)
        self.masks = store(chosen, masks, {name: shapes[name].numel() for name in chosen if name in shapes})
        kept = [name for group in self.groups if group["keep_dense"] for name in group["params"]]
        self.dense = DenseValues(self.masks, kept) if kept else None
        self.enforcer = MaskEnforcer(self.masks, optimizers)
        self.weights = WeightCheck(model, self.masks, self.enforcer, "PruneHandler", strict)
        self.evidence: Evidence | None = evidence_of(model, self.groups, chosen, calibration.data is not None)
        self.is_informed = self.evidence is not None or any(group["repair"] for group in self.groups)
        self._drawn: list[Saliency | None] = [None] * len(self.groups)
        self._cached: dict[str, Tensor] = {}
        self.verify = "never"
        self.reached_at: dict[str, tuple[float | None, int]] = {}
        self.partial: set[str] = set()
        self._left_out: set[str] = set()  # what a warning has named
        for group in self.groups:
            if group["saliency"].randomised:
                group["generator"] = group["generator"] or torch.Generator().manual_seed(torch.initial_seed())
        if masks is not None and self.dense is not None:
            self.dense.remember_all()

    # Hooks

    def keep(self) -> None:
        """Install the hooks, and mask pruned entries that are not 0."""
        self.enforcer.install()
        self.enforcer.settle()

    def enforce(self) -> None:
        """Install the hooks, and make pruned entries 0 everywhere."""
        self.enforcer.install()
        self.enforcer.apply()

    # Updates

    def targets(self, step: float) -> list[float]:
        """Return each group's target: its schedule's at a step, or its ``"sparsity"``."""
        return [
            as_sparsity(group["sparsity"] if group["schedule"] is None else group["schedule"](step))
            for group in self.groups
        ]

    def update(
        self,
        targets: Sequence[float],
        plan: Callable[[Sequence[float]], UpdatePlan] | None = None,
        done: Callable[[], None] | None = None,
        whole: bool = True,
    ) -> None:
        """Bring each group to its target, equally on every rank; it is done as a whole or, if it raises, not at all.

        Args:
            targets: a sparsity for each group.
            plan: what plans it; None: :meth:`plan`.
            done: called when everything has changed, once more if something cuts that short.
            whole: whether the targets are reached by it; False: it is a part of the way.
        """
        states = self.generator_states() if any(group["generator"] for group in self.groups) else []
        former, partial = [group["sparsity"] for group in self.groups], self.partial
        ready = False
        try:
            planned = (plan or self.plan)(targets)
            planned.replaced = self.masks.replaced(planned.masks)
            if self.dense is not None:
                planned.dense = self.dense.remembered(planned.replaced["_masks"])
                planned.values |= self.dense.revived(planned.replaced["_masks"], planned.values)
            if self.verify == "update":
                self.check_equal(planned.replaced["_masks"])
            raise_together(None, REFUSED)  # the last meeting: what follows is done on every rank
            ready = True
            carry_out(self, planned, targets, former, whole, done)
        except BaseException as error:
            if ready:  # everything is computed: what was cut short is repeated to its end
                carry_out(self, planned, targets, former, whole, done)
                raise
            self.set_generator_states(states)
            self.partial = partial
            if isinstance(error, Exception):
                raise_together(error, REFUSED)
            raise

    def plan(self, targets: Sequence[float]) -> UpdatePlan:
        """Return what brings each group to its target, equal on every rank; only generators have moved on.

        It raises the errors of :func:`.choose_masks` and :class:`.WeightCheck`.
        """
        if self.masks.is_sharded:
            from ignite_prune.update.sharded import planned_over_shards  # slow to import

            return planned_over_shards(self, targets)
        check_same(self.model, self.masks.parameters, REMAKE)
        for group, target in zip(self.groups, targets):
            as_unit_fraction(group["pattern"], target)
        ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
        before, plan = self.masks.so_far(), UpdatePlan()
        if any(mask is not None for mask in before.values()):
            self.weights.all()
        if ranks:
            due = [self.is_due(group, target) for group, target in zip(self.groups, targets)]
            check_same_parameters(self.masks, {"targets": f"{list(targets)}", "due": f"{due}"})
        updates = self._scored(targets, before, ranks)
        for update in updates:
            if not (update.is_due or update.lifts) and update.saliency.needs:
                continue  # nothing can be pruned, and the evidence may be used up
            merge(plan.masks, plan_masks(update, self.masks, before, self.evidence))
        repairs = any(group["repair"] for group in self.groups)
        if repairs:
            again = None if self.calibration.data is None else lambda: self.calibration.batches(self.model)
            plan = repaired(self.model, self.groups, self.masks, before, plan, self.evidence, again)
        if ranks:
            plan = agree(plan, self.masks, repairs)
        self.has_drawn([update.saliency if update.group["saliency"].randomised else None for update in updates])
        self._cached |= {s.name: s.cached for u in updates for s in u.scores.values() if s.cached is not None}
        return plan

    def _scored(self, targets: Sequence[float], before: Mapping[str, Tensor | None], ranks: bool) -> list[GroupUpdate]:
        """Return each group's update with its scores; data-dependent scores are averaged over ranks."""
        updates = []
        for group, target in zip(self.groups, targets):
            saliency, schedule = group["saliency"], group["schedule"]
            if saliency.randomised:
                saliency = drawn(group, group["generator"])
            dense_phase = schedule is not None and schedule.regrows and target < (group["sparsity"] or 0.0)
            updates.append(GroupUpdate(group, target, saliency, {}, dense_phase, self.is_due(group, target)))
        if self.evidence is not None and any(update.is_due for update in updates):
            if self.calibration.data is not None:
                calibrate(self.evidence, self.calibration, [group["saliency"] for group in self.groups])
            self.evidence.sum_over_ranks(averaged=self.calibration.data is None)
        for update in updates:
            evidence = self.evidence if update.is_due else None
            update.scores = bound_scores(update.group, update.saliency, self.masks, before, evidence)
            if update.is_due and update.saliency.needs:
                self.leave_out(update, evidence)
        if ranks:
            average_scores([scores for update in updates for scores in update.scores.values()])
        return updates

    def is_due(self, group: ParamGroup, target: float) -> bool:
        """Return whether an update may prune something; it cannot if the last one reached just this target."""
        if group["allocation"].sets_own:
            return True
        reached = self.reached_at.get(group["scored"][0])
        return target != 0 and reached != (target, self.masks.changes)

    def leave_out(self, update: GroupUpdate, evidence: Evidence | None) -> None:
        """Leave parameters that have no evidence for a good reason out of an update, with a warning."""
        first, names = update.group["scored"][0], leave_out(update, self.masks, evidence)
        self.partial = self.partial | {first} if names else self.partial - {first}
        warn_of_left_out(update.group, names, self._left_out)

    def has_drawn(self, drawn: list[Saliency | None]) -> None:
        """Keep the saliencies whose randomness an update has drawn, for :meth:`scores`."""
        self._drawn = drawn

    def restore(self) -> None:
        """Remove the masks; kept values come back."""
        values = {} if self.dense is None else self.dense.revived({}, {})

        def remove() -> None:
            write_values(self.model, values)
            self.masks.clear()
            for group in self.groups:
                group["sparsity"] = 0.0

        to_the_end(remove)

    def check_equal(self, masks: Mapping[str, Tensor]) -> None:
        """Raise on every rank if masks differ between ranks that hold the same part of a parameter."""
        from ignite_prune.update.verification import check_equal  # rarely needed

        check_equal(self.masks, masks, self.masks.exchange)

    # What it knows

    def scores(self) -> dict[str, Tensor]:
        """Return every scored parameter's saliency as of now; drawn and cached scores are the last update's."""
        if self.masks.is_sharded:
            from ignite_prune.update.sharded import scores_over_shards  # slow to import

            return scores_over_shards(self, self._drawn)
        answer = {}
        for group, last in zip(self.groups, self._drawn):
            saliency = last or drawn(group, group["generator"], advance=False)
            masks = self.masks.so_far(group["params"])
            for name, scores in bound_scores(group, saliency, self.masks, masks, self.evidence).items():
                answer[name] = self._cached[name] if name in self._cached else scores.compute()
        return answer

    @property
    def units(self) -> dict[str, tuple[int, int]]:
        """The number of units of a structure's groups at first, and now; empty without a structure."""
        if self.structure is None:
            return {}
        origin, kept = self.structure.origin.groups, self.structure.kept(self.masks)
        names = (name for group in self.groups for name in group["units"])
        return {name: (origin[name].size, int(kept[name].count_nonzero())) for name in names}

    def sparsities(self) -> dict[str, float]:
        """Return what is published: :meth:`.MaskStore.published`, and the sparsity of a structure's units."""
        if self.structure is None:
            return self.masks.published(self.model)
        whole, left = map(sum, zip(*self.units.values()))
        return self.masks.published(self.model) | {"units": 1 - left / whole}

    # State

    def reached(self) -> list[float | None]:
        """Return the target of each group's last update, None where the masks have changed since."""
        settled = [self.reached_at.get(group["scored"][0], (None, -1)) for group in self.groups]
        return [target if changes == self.masks.changes else None for target, changes in settled]

    def generator_states(self) -> list[Tensor | None]:
        """Return the states of the groups' generators."""
        return [None if group["generator"] is None else group["generator"].get_state() for group in self.groups]

    def set_generator_states(self, states: Sequence[Any]) -> None:
        """Set the state of each group's generator."""
        for group, state in zip(self.groups, states):
            if state is not None and group["generator"] is not None:
                group["generator"].set_state(state.cpu())

    def forget_scores(self, reached: Sequence[float | None]) -> None:
        """Forget the last update's scores; ``reached`` is what :meth:`reached` returned when a state was saved."""
        self._drawn, self._cached = [None] * len(self.groups), {}
        self.reached_at = {
            group["scored"][0]: (target, self.masks.changes)
            for group, target in zip(self.groups, reached)
            if target is not None
        }
