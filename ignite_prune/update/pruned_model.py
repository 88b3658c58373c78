"""PrunedModel: the pruning state of one model: its groups, masks, kept values, hooks and evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.commit import to_the_end
from ignite_prune._utils.shard import collected, is_sharded
from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune.core.dense_values import DenseValues
from ignite_prune.core.mask_enforcer import MaskEnforcer
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.optimizers import check_held
from ignite_prune.core.selection import named_parameters
from ignite_prune.core.weight_check import WeightCheck
from ignite_prune.saliency import Informed
from ignite_prune.update.calibration import Calibration
from ignite_prune.update.last_scores import LastScores
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.param_groups import build
from ignite_prune.update.plan import evidence_of, write_values

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence
    from ignite_prune.structure import Structure


class PrunedModel:
    """Groups, masks, kept values, hooks and evidence over the parameters of one model.

    :class:`~ignite_prune.update.pruner.Pruner` updates it.

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
        last: the scores of the last update that :meth:`scores` returns again.
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
            whole = self.structure.masks(self.structure.kept({name: collected(m) for name, m in masks.items()}))
            masks = {name: whole[name] for name in chosen}
        store = MaskStore
        if any(type(each) is not nn.Parameter and is_sharded(each) for each in chosen.values()):
            from ignite_prune.core.sharded_mask_store import ShardedMaskStore as store  # slow to import
            from ignite_prune.update.sharded.settings import check_settings

            check_settings(self.groups)
        self.masks = store(chosen, masks, {name: shapes[name].numel() for name in chosen if name in shapes})
        kept = [name for group in self.groups if group["keep_dense"] for name in group["params"]]
        self.dense = DenseValues(self.masks, kept) if kept else None
        self.enforcer = MaskEnforcer(self.masks, optimizers)
        self.weights = WeightCheck(model, self.masks, self.enforcer, "PruneHandler", strict)
        self.enforcer.on_alive = self.weights.before_step
        self.evidence: Evidence | None = None
        if any(isinstance(group["saliency"], Informed) or group["repair"] for group in self.groups):
            self.evidence = evidence_of(model, self.groups, chosen, calibration.data is not None)
        self.is_informed = self.evidence is not None or any(group["repair"] for group in self.groups)
        self.last = LastScores()
        self.verify = "never"
        self.reached_at: dict[str, tuple[float | None, int]] = {}
        self.partial: set[str] = set()
        self._kept_units: tuple[int, Mapping[str, Tensor]] = -1, {}  # at which change of sharded masks
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

    # Targets

    def targets(self, step: float) -> list[float]:
        """Return each group's target: its schedule's at a step, or its ``"sparsity"``."""
        return [
            as_sparsity(group["sparsity"] if group["schedule"] is None else group["schedule"](step))
            for group in self.groups
        ]

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

    @property
    def units(self) -> dict[str, tuple[int, int]]:
        """The number of units of a structure's groups at first, and now; empty without a structure."""
        if self.structure is None:
            return {}
        origin, kept = self.structure.origin.groups, self.kept_units()
        names = (name for group in self.groups for name in group["units"])
        return {name: (origin[name].size, int(kept[name].count_nonzero())) for name in names}

    def kept_units(self) -> Mapping[str, Tensor]:
        """Return which units of the structure are left; with sharded parameters every rank calls it."""
        assert self.structure is not None
        if not self.masks.is_sharded:
            return self.structure.kept(self.masks)
        changes, kept = self._kept_units
        if changes != self.masks.changes:
            from ignite_prune.update.sharded.coupled_units import kept_over_shards  # slow to import

            kept = kept_over_shards(self.structure, self.masks)
            self._kept_units = self.masks.changes, kept
        return kept

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
        self.last = LastScores()
        self.reached_at = {
            group["scored"][0]: (target, self.masks.changes)
            for group, target in zip(self.groups, reached)
            if target is not None
        }
