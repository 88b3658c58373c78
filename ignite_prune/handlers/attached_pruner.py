"""AttachedPruner: a pruner and its evidence on an engine. ``PruneHandler`` adds what a user calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from ignite_prune._utils.distributed import raise_together, world_size
from ignite_prune.core.claims import check_same, claim
from ignite_prune.core.mask_store import MaskStore, warn_of_nearly_empty
from ignite_prune.core.weight_check import WeightCheck
from ignite_prune.handlers.attachment import Attachment
from ignite_prune.handlers.describe import describe_group
from ignite_prune.handlers.events import PruneEvents, fire
from ignite_prune.handlers.run_check import may_be_driven
from ignite_prune.handlers.run_warning import AGAIN, NEVER_ATTACHED, NOT_UPDATED, NOTHING, UNUSED
from ignite_prune.handlers.target_handler import TargetHandler
from ignite_prune.saliency import NonFiniteSaliency
from ignite_prune.schedule import Schedule
from ignite_prune.update.agreement import NOT_ATTACHED, announced, check_same_parameters
from ignite_prune.update.at_target import is_at_target
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.pruner import REMAKE, Pruner

if TYPE_CHECKING:
    from ignite_prune._utils.exchange import Traffic
    from ignite_prune.handlers.evidence_feed import EvidenceFeed
    from ignite_prune.structure import Indices, Structure


class AttachedPruner(TargetHandler):
    """Connects a :class:`~ignite_prune.update.pruner.Pruner` to an engine: updates, hooks, evidence and checkpoints.

    A subclass makes ``pruning`` and, if it needs evidence, ``_feed``.

    Attributes:
        pruning: the groups, masks and hooks; another one after the model has been sliced.
    """

    # 1 had no evidence; 2 named it by the representation of its fields; 3 had no lists of pairs; 4 no compressed masks
    VERSION = 5
    KEYS = ("progress", "masks", "sparsities", "generators", "dense", "evidence", "reached")
    VARYING = ("dense",)
    MAIN = "global"
    pruning: Pruner
    _feed: EvidenceFeed | None = None
    _scaler: torch.amp.GradScaler | None = None
    _synced = False  # DDP broadcasts buffers before a forward pass
    _compress_masks = False  # in checkpoints
    _warned: set[str]  # parameters that a warning has named
    _has_met = False  # every rank is known to have constructed its handler
    _restored = False  # what was pruned has been brought back
    _scored = False  # scores() has been called
    _at: float | None = None  # the schedule's step of the last update, where this object made it

    @property
    def masks(self) -> MaskStore:
        """The masks, a mapping ``{name: bool tensor}``, True = kept."""
        return self.pruning.masks

    @property
    def structure(self) -> Structure | None:
        """The structure whose units are pruned, as it is now; None where single entries or patterns are."""
        return self.pruning.structure

    @property
    def model_sparsity(self) -> float:
        """The fraction of all floating-point parameters of the model that is pruned, biases and norms included."""
        return self.masks.sparsity_of(self.pruning.model)

    @property
    def traffic(self) -> Traffic | None:
        """What the ranks exchanged in the last mask update of sharded parameters; None for others."""
        exchange = self.masks.exchange
        return None if exchange is None else exchange.traffic

    @property
    def units(self) -> dict[str, tuple[int, int]]:
        """How many units of a structure's groups there were, and are left; empty without a structure."""
        return self.pruning.units

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups, each with its ``"sparsity"`` and settings; Ignite's ParamSchedulers can drive it."""
        return self.pruning.groups

    @property
    def reached(self) -> bool:
        """Whether every group's last update had its final target; see :attr:`.TargetHandler.reached`."""
        resumed = max(self._progress.done.values(), default=None)
        return is_at_target(self.pruning, self._at, self._check.last, resumed)

    def _feed_of(self, pruner: Pruner) -> EvidenceFeed | None:
        """Return what gathers a pruner's evidence; None where it needs none."""
        if not pruner.is_informed:
            return None
        from ignite_prune.handlers.evidence_feed import EvidenceFeed, check_sources  # slow to import

        check_sources(pruner)
        return None if pruner.evidence is None else EvidenceFeed(pruner, pruner.evidence, self._scaler, self._synced)

    @property
    def can_follow(self) -> bool:
        """Whether :meth:`follow` is possible: not finalized, and what is sliced off need not come back."""
        return not self._finalized and not any(group["keep_dense"] for group in self.pruning.groups)

    def follow(self, structure: Structure, indices: Indices) -> None:
        """Continue on the parameters of a model that has been sliced; called by ``shrink`` and ``ShrinkHandler``.

        Args:
            structure: what is left.
            indices: which indices of each parameter were kept.
        """
        from ignite_prune.update.sliced_pruner import sliced_pruner  # slow to import

        pruning = sliced_pruner(self.pruning, structure, indices)
        feed = self._feed_of(pruning)
        if feed is not None and self._feed is not None:
            assert pruning.evidence is not None and self.pruning.evidence is not None
            pruning.evidence.load_state_dict(self.pruning.evidence.sliced_state(indices))
        self._change_to(pruning, feed)
        self._publish()

    def way_back(self) -> Callable[[], None]:
        """Return a function that takes a later :meth:`follow` back; it may be called without one."""
        pruning, feed = self.pruning, self._feed
        return lambda: self._change_to(pruning, feed)

    def _change_to(self, pruning: Pruner, feed: EvidenceFeed | None) -> None:
        self._stop()
        vars(self).update(pruning=pruning, _feed=feed)
        pruning.keep()
        if self._owns:
            claim(self, self.pruning.masks.parameters, self._shared, check=False)
        if feed is not None:
            feed.install() if self._attachment is None else feed.attach(self._attachment)

    # Attaching

    def _start(self, attachment: Attachment) -> None:
        if not self.pruning.optimizers:
            attachment.add(Events.ITERATION_COMPLETED, self._settle)
        if self._feed is not None:
            self._feed.attach(attachment)
        self.pruning.keep()

    def _settle(self, *_: Any) -> None:
        self.pruning.enforcer.mask_weights()

    def _stop(self) -> None:
        self.pruning.enforcer.remove()
        if self._feed is not None:
            self._feed.remove()

    def _masked(self) -> Mapping[str, nn.Parameter]:
        return self.pruning.masks.parameters

    def _meet(self, error: Exception | None, message: str) -> None:
        """Raise if the constructor failed on another rank, which does not come to a collective."""
        if world_size() > 1 and not self._has_met:
            from ignite_prune._utils.first_meeting import meet_first  # rarely needed

            meet_first(error, message)
            self._has_met = True

    def _check_ranks(self, error: Exception | None, where: str) -> None:
        self._meet(error, NOT_ATTACHED)
        raise_together(error, NOT_ATTACHED)
        if world_size() > 1:
            from ignite_prune.update.rank_settings import settings_of  # slow to import

            settings = settings_of(self.pruning.groups, self.pruning.given[1])
            check_same_parameters(self.pruning.masks, {**settings, "a pruner": where}, NOT_ATTACHED)
            self.pruning.masks.settle()

    def _check_parameters(self) -> None:
        check_same(self.pruning.model, self.pruning.masks.parameters, REMAKE)

    def _trained_by(self) -> list[Optimizer]:
        return list(self.pruning.optimizers)

    def _schedules(self) -> list[Schedule]:
        return [group["schedule"] for group in self.pruning.groups if group["schedule"] is not None]

    def _check_start(self, engine: Engine, attachment: Attachment) -> None:
        super()._check_start(engine, attachment)
        if attachment.is_again and any(
            group["schedule"] is not None and group["schedule"](0) < (group["sparsity"] or 0.0)
            for group in self.pruning.groups
        ):
            self._check.tell("again", AGAIN.format(sparsity=self.pruning.masks.sparsity))
        if not may_be_driven(engine) and not self._shared:
            self._check_end(engine)

    def _check_end(self, engine: Engine) -> None:
        targets = [group["sparsity"] for group in self.pruning.groups]
        if not self._schedules() and not self._has_pruned and not any(targets) and not self._is_for_scores:
            self._check.tell("nothing", NOTHING)

    @property
    def _is_for_scores(self) -> bool:
        """Whether a pruner beside another one has been asked for ``scores()``, or has no event in training to prune at.

        Another one without a schedule was given an event for nothing: its schedule has been forgotten.
        """
        events = [] if self._attachment is None else self._attachment.events
        return self._shared and (self._scored or all(each == Events.COMPLETED for each in events))

    def _check_final(self) -> None:
        schedules = self._schedules()
        dense = [schedule for schedule in schedules if schedule.ends and schedule(schedule.horizon) == 0]
        for_nothing = bool(schedules) and len(dense) == len(schedules)
        if not self._has_pruned and not for_nothing and not (self._shared and self._scored):
            why = NEVER_ATTACHED if self._check.last is None else NOT_UPDATED
            self._check.tell("nothing", UNUSED.format(why=why))

    @property
    def _has_pruned(self) -> bool:
        return self._restored or self.pruning.masks.sparsity > 0

    def _checker(self) -> WeightCheck:
        return self.pruning.weights

    def _bake(self) -> None:
        self.pruning.masks.apply_()

    # The target

    def _met(self) -> list[float | None]:
        return self.pruning.reached()

    def _check_target(self) -> None:
        for index, group in enumerate(self.pruning.groups):
            masks = self.pruning.masks.so_far(group["params"]).values()
            if group["schedule"] is None and not group["sparsity"] and all(mask is None for mask in masks):
                raise ValueError(
                    f"There is no target to wait for: group {index} has no schedule, and nothing is pruned yet. Give "
                    "the PruneHandler a schedule=, or say which sparsity to wait for: when_reached(event, sparsity=0.9)"
                )

    # Updating

    def _update_at(self, step: int, done: Callable[[], None]) -> None:
        assert self._attachment is not None
        engine = self._attachment.engine

        def record() -> None:
            self._at = step
            done()

        try:
            with announced():
                targets = self.pruning.targets(step)
            self.pruning.update(targets, done=record)
        except NonFiniteSaliency as error:
            if not engine.should_terminate:
                raise
            warnings.warn(f"The run is being terminated, so a mask update is left out: {error}", stacklevel=2)
            return
        self._updated()

    def _updated(self) -> None:
        """Publish and report an update, which has been recorded, so that a checkpoint of the event holds it."""
        if self._attachment is not None:
            self._publish()
            fire(self._attachment.engine, PruneEvents.MASKS_UPDATED)
            self._announce()
        warn_of_nearly_empty(self.pruning.masks, self._warned)

    def _report(self) -> dict[str, float]:
        return self.pruning.sparsities()

    def _describe(self) -> list[str]:
        groups = [
            f"group {index}: {describe_group(group, self._masked())}" for index, group in enumerate(self.pruning.groups)
        ]
        return [f"model: {type(self.pruning.model).__name__}", *groups, f"sparsity: {self.masks.sparsity:.4g}"]

    # Checkpoints

    def _state(self) -> dict[str, Any]:
        if self.pruning.verify == "checkpoint":
            self.pruning.check_equal(self.masks.held)
        from ignite_prune.update.pruner_state import state_of  # slow to import

        return state_of(self.pruning, [] if self._feed is None else self._feed.state_dict(), self._compress_masks)

    def _upgraded(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return (
            {"evidence": [], "reached": [None] * len(self.pruning.groups), **state} if state["version"] < 2 else state
        )

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        self._check_free()
        if isinstance(state["masks"], Mapping) and "shards" in state["masks"]:
            from ignite_prune.update.sharded.state import joined  # slow to import

            state = joined(state)
        from ignite_prune.update.pruner_state import PrunerState, checked_evidence, loader_of  # slow to import

        fitting = PrunerState.checked(state, self.pruning.groups)
        load_masks = loader_of(self.pruning, fitting)
        evidence = checked_evidence(self.pruning, fitting.evidence, state["version"])

        def load() -> None:
            load_masks()
            if self.pruning.evidence is not None:
                self.pruning.evidence.load_state_dict(evidence)
            self._own()
            self._at = None

        return load
