"""Mask updates over all groups: plan without a trace, then commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ignite_prune.core.dense_values import DenseValues
from ignite_prune.core.mask_enforcer import MaskEnforcer
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.repair.base import Passes
from ignite_prune.saliency import Saliency
from ignite_prune.update.agreement import average_scores
from ignite_prune.update.one_shot import take_values
from ignite_prune.update.param_groups import Group, as_unit_fraction
from ignite_prune.update.plan import Plan, bind, plan_masks, repaired
from ignite_prune.update.scores import ParameterScores, scorers

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence


class Calibration(NamedTuple):
    """How evidence comes from data at each update, rather than from training.

    Attributes:
        gather: runs over the data.
        passes: gives the batches again, for repairs.
    """

    gather: Callable[[], None]
    passes: Passes


class MaskUpdater:
    """Brings groups to their targets.

    Args:
        groups: from :func:`ignite_prune.update.param_groups.build`.
        masks: the masks it changes.
        dense: remembers pruned values.
        enforcer: keeps the zeros.
        evidence: what saliencies and repairs need.
        calibration: gathers it from data; None where training does.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        masks: MaskStore,
        dense: DenseValues,
        enforcer: MaskEnforcer,
        evidence: Evidence,
        calibration: Calibration | None = None,
    ) -> None:
        self._groups, self._masks, self._dense, self._enforcer = groups, masks, dense, enforcer
        self._evidence, self._calibration = evidence, calibration
        self._drawn: list[Saliency | None] = [None] * len(groups)
        self._held: dict[str, Tensor] = {}
        self._settled: dict[str, tuple[float, int]] = {}  # by what a group judges first: what its last update reached
        for group in groups:
            if group["saliency"].randomised and group["generator"] is None:
                group["generator"] = torch.Generator().manual_seed(torch.initial_seed())

    def plan(self, targets: Sequence[float]) -> Plan:
        """Return what brings each group to its target; generators have moved on.

        Args:
            targets: a sparsity for each group.

        Raises:
            TypeError, ValueError: see :func:`.choose_units.divide`; nothing has changed, no generator either.
        """
        states, drawn = self.generator_states(), list(self._drawn)
        try:
            for index, group in enumerate(self._groups):
                if group["saliency"].randomised:
                    drawn[index] = group["saliency"].draw(group["generator"])
            due = [
                {**group, "sparsity": target, "saliency": dice or group["saliency"]}
                for group, target, dice in zip(self._groups, targets, drawn)
            ]
            before = self._masks.so_far(self._masks)
            asked = self._asked(due, before)
            plan = Plan()
            for group, last, group_scorers in zip(due, self._groups, asked):
                plan.join(self._divide(group, last["sparsity"], group_scorers))
            passes = None if self._calibration is None else self._calibration.passes
            plan = repaired(self._evidence.model, due, self._masks, before, plan, self._evidence, passes)
        except Exception:
            self.set_generator_states(states)
            raise
        self._drawn = drawn
        self._held |= {s.name: s.held for group in asked for s in group.values() if s.held is not None}
        return plan

    def _asked(self, due: Sequence[Group], before: Mapping[str, Tensor | None]) -> list[dict[str, ParameterScores]]:
        """Return every group's scorers, evidence bound, those that depend on data asked on all ranks alike."""
        error: Exception | None = None
        asked: list[dict[str, ParameterScores]] = []
        try:
            wanting = [self._is_due(group) for group in due]
            if self._evidence and any(wanting):
                if self._calibration is not None:
                    self._calibration.gather()
                self._evidence.sum_over_ranks(averaged=self._calibration is None)
            for group, wants in zip(due, wanting):
                bound = self._bound(group, before) if wants else group
                asked.append(scorers(bound, self._masks.parameters, before))
        except Exception as raised:
            error = raised
        average_scores([scorer for group in asked for scorer in group.values()], error)
        return asked

    def _is_due(self, group: Group) -> bool:
        """Whether an update may prune something; where the last one reached just this, it cannot."""
        target = group["sparsity"]
        reached = self._settled.get(group["scored"][0])
        return bool(group["allocation"].sets_own or (target > 0 and reached != self._at(target)))

    def _at(self, target: float) -> tuple[float, int]:
        return target, self._masks.changes

    def _bound(self, group: Group, masks: Mapping[str, Tensor | None]) -> Group:
        return {**group, "saliency": bind(group["saliency"], group["scored"], self._evidence, masks)}

    def _divide(self, group: Group, last: float, asked: Mapping[str, ParameterScores]) -> dict[str, Tensor]:
        lifted = self._lifted({**group, "sparsity": last}, group["sparsity"])
        before = {name: None if lifted else self._masks.pruned(name) for name in group["params"]}
        planned = plan_masks(group, self._masks, before, self._evidence, asked)
        if lifted:
            dense = {name: torch.ones_like(self._masks[name]) for name in before}
            return dense | planned
        return planned

    @staticmethod
    def _lifted(group: Group, target: float) -> bool:
        """Whether a dense phase begins."""
        schedule = group["schedule"]
        return schedule is not None and schedule.regrows and target < group["sparsity"]

    def commit(self, plan: Plan, targets: Sequence[float]) -> None:
        """Take a plan: store, weights, gradients, optimizer slots, buffers and the groups' ``"sparsity"``."""
        for group, target in zip(self._groups, targets):
            group["sparsity"] = target
        before = {name: self._masks[name] for name in self._dense}  # copies
        self._masks.update(plan.masks, copy=False)
        self._dense.remember(before, self._masks)
        take_values(self._evidence.model, plan)
        self.enforce()
        self._dense.bring_back(before, self._masks)
        if plan.masks:
            self._evidence.used()
        self._settled = {group["scored"][0]: self._at(target) for group, target in zip(self._groups, targets)}

    def enforce(self) -> None:
        """Put the hooks on and make pruned entries 0 everywhere."""
        self._enforcer.install()
        self._enforcer.apply()

    def check(self, targets: Sequence[float]) -> None:
        """Raise where a target is more than its group's pattern can take."""
        for group, target in zip(self._groups, targets):
            as_unit_fraction(group["pattern"], target)

    def scores(self) -> dict[str, Tensor]:
        """Return every parameter's saliency as of now; drawn and asked-for scores are the last update's."""
        answer = {}
        for group, last in zip(self._groups, self._drawn):
            saliency = last or group["saliency"]
            if saliency.randomised and last is None:
                saliency = saliency.draw(_copy(group["generator"]))
            masks = self._masks.so_far(group["params"])
            bound = self._bound({**group, "saliency": saliency}, masks)
            for name, scorer in scorers(bound, self._masks.parameters, masks).items():
                answer[name] = self._held[name] if name in self._held else scorer.scores()
        return answer

    def forget_scores(self, reached: Sequence[float | None]) -> None:
        """Forget the last update's scores; a state has been loaded, with what :meth:`reached` told."""
        self._drawn, self._held = [None] * len(self._groups), {}
        self._settled = {
            group["scored"][0]: self._at(target) for group, target in zip(self._groups, reached) if target is not None
        }

    def reached(self) -> list[float | None]:
        """Return the target of each group's last update, None where the masks have changed since."""
        settled = [self._settled.get(group["scored"][0]) for group in self._groups]
        return [at[0] if at is not None and at[1] == self._masks.changes else None for at in settled]

    def generator_states(self) -> list[Tensor | None]:
        """Return each group's generator state."""
        return [None if group["generator"] is None else group["generator"].get_state() for group in self._groups]

    def set_generator_states(self, states: Sequence[Any]) -> None:
        """Set each group's generator."""
        for group, state in zip(self._groups, states):
            if state is not None:
                group["generator"].set_state(state.cpu())


def _copy(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator(device=generator.device)
    copy.set_state(generator.get_state())
    return copy
