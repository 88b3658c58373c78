"""Mask updates over all groups: plan without a trace, then commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ignite_prune.dense import DenseValues
from ignite_prune.enforce import Enforcer
from ignite_prune.groups import Group, as_unit_fraction
from ignite_prune.masks import MaskStore
from ignite_prune.prune import divide
from ignite_prune.saliency import Saliency
from ignite_prune.scorer import Scorer, scorers


class Ranks(Protocol):
    """What several ranks need of a plan."""

    def average(self, scorers: Sequence[Scorer]) -> None:
        """Ask every rank's scorers and average them, or raise on all ranks where one cannot."""


class Updater:
    """Brings groups to their targets.

    Args:
        groups: from :func:`ignite_prune.groups.build`.
        masks: the masks it changes.
        dense: remembers pruned values.
        enforcer: keeps the zeros.
    """

    def __init__(self, groups: Sequence[Group], masks: MaskStore, dense: DenseValues, enforcer: Enforcer) -> None:
        self._groups, self._masks, self._dense, self._enforcer = groups, masks, dense, enforcer
        self._drawn: list[Saliency | None] = [None] * len(groups)
        self._held: dict[str, Tensor] = {}
        for group in groups:
            if group["saliency"].randomised and group["generator"] is None:
                group["generator"] = torch.Generator().manual_seed(torch.initial_seed())

    def plan(self, targets: Sequence[float], ranks: Ranks | None = None) -> dict[str, Tensor]:
        """Return the masks that bring each group to its target; generators have moved on.

        Args:
            targets: a sparsity for each group.
            ranks: makes every rank plan the same; None where there is one.

        Raises:
            TypeError, ValueError: see :func:`ignite_prune.prune.divide`; nothing has changed, no generator either.
        """
        states, drawn = self.generator_states(), list(self._drawn)
        try:
            for index, group in enumerate(self._groups):
                if group["saliency"].randomised:
                    drawn[index] = group["saliency"].draw(group["generator"])
            asked = [self._scorers(group, target, dice) for group, target, dice in zip(self._groups, targets, drawn)]
            if ranks is not None:
                ranks.average([scorer for group in asked for scorer in group.values()])
            planned: dict[str, Tensor] = {}
            for group, target, group_scorers in zip(self._groups, targets, asked):
                planned |= self._divide(group, target, group_scorers)
        except Exception:
            self.set_generator_states(states)
            raise
        self._drawn = drawn
        self._held |= {s.name: s.held for group in asked for s in group.values() if s.held is not None}
        return planned

    def _scorers(self, group: Group, target: float, dice: Saliency | None) -> dict[str, Scorer]:
        return scorers({**group, "sparsity": target, "saliency": dice or group["saliency"]}, self._masks)

    def _divide(self, group: Group, target: float, asked: Mapping[str, Scorer]) -> dict[str, Tensor]:
        lifted = self._lifted(group, target)
        before = {name: None if lifted else self._masks.pruned(name) for name in group["params"]}
        planned = divide(asked, before, {**group, "sparsity": target})
        if lifted:
            dense = {name: torch.ones_like(self._masks[name]) for name in before}
            return dense | planned
        return planned

    @staticmethod
    def _lifted(group: Group, target: float) -> bool:
        """Whether a dense phase begins."""
        schedule = group["schedule"]
        return schedule is not None and schedule.regrows and target < group["sparsity"]

    def commit(self, planned: Mapping[str, Tensor], targets: Sequence[float]) -> None:
        """Take planned masks: store, weights, gradients, optimizer slots and the groups' ``"sparsity"``."""
        for group, target in zip(self._groups, targets):
            group["sparsity"] = target
        before = {name: self._masks[name] for name in self._dense}  # copies
        self._masks.update(planned, copy=False)
        self._dense.remember(before, self._masks)
        self.enforce()
        self._dense.bring_back(before, self._masks)

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
            for name, scorer in scorers({**group, "saliency": saliency}, self._masks).items():
                answer[name] = self._held[name] if name in self._held else scorer.scores()
        return answer

    def forget_scores(self) -> None:
        """Forget the last update's scores; a state has been loaded."""
        self._drawn, self._held = [None] * len(self._groups), {}

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
