"""Pruner: mask updates of one model; ``PruneHandler`` attaches it to an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor

from ignite_prune._utils.distributed import raise_together
from ignite_prune._utils.sparsity import as_unit_fraction
from ignite_prune.core.claims import check_same
from ignite_prune.update.agreement import REFUSED, agree, average_scores, check_same_parameters
from ignite_prune.update.calibration import calibrate
from ignite_prune.update.left_out import leave_out, warn_of_left_out
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.plan import (
    GroupUpdate,
    UpdatePlan,
    bound_scores,
    carry_out,
    drawn,
    merge,
    plan_masks,
    repaired,
)
from ignite_prune.update.pruned_model import PrunedModel

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence
    from ignite_prune.saliency import Saliency


REMAKE = "PruneHandler, with masks=pruner.masks"  # where the model's parameters were replaced


class Pruner(PrunedModel):
    """Updates the masks of a model.

    An update is planned first and then carried out: if planning raises, nothing has changed.
    """

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
            if _has_ranks():
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
            from ignite_prune.update.sharded.plan_shards import planned_over_shards  # slow to import

            return planned_over_shards(self, targets)
        check_same(self.model, self.masks.parameters, REMAKE)
        for group, target in zip(self.groups, targets):
            as_unit_fraction(group["pattern"], target)
        ranks = _has_ranks()
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
        self.last.cached |= {s.name: s.cached for u in updates for s in u.scores.values() if s.cached is not None}
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
            if evidence is not None and update.saliency.needs:
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
        self.last.drawn = drawn

    def scores(self) -> dict[str, Tensor]:
        """Return every scored parameter's saliency as of now; drawn and cached scores are the last update's."""
        if self.masks.is_sharded:
            from ignite_prune.update.sharded.plan_shards import scores_over_shards  # slow to import

            return scores_over_shards(self, self.last.drawn or [None] * len(self.groups))
        return self.last.scores(self.groups, self.masks, self.evidence)


def _has_ranks() -> bool:
    """Return whether there is a process group, whose ranks update together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
