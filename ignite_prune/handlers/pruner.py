"""What lies over one model while it is pruned: groups, masks, kept values, hooks, evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.arguments import as_sparsity
from ignite_prune.core.dense_values import DenseValues
from ignite_prune.core.mask_enforcer import MaskEnforcer
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.optimizer_state import check_held
from ignite_prune.core.selection import named_parameters
from ignite_prune.handlers.base import check_same
from ignite_prune.handlers.evidence_feed import EvidenceFeed
from ignite_prune.handlers.state import PrunerState
from ignite_prune.update.agreement import agree
from ignite_prune.update.param_groups import Group, build
from ignite_prune.update.plan import Plan, evidence_of
from ignite_prune.update.updater import MaskUpdater

if TYPE_CHECKING:
    from ignite_prune.structure import Indices, Structure


class Pruner:
    """The parts of a pruner that lie over a model's parameters as they are now; after slicing there are others.

    Args:
        model: unwrapped.
        optimizers: those that train it.
        params: what the user selected.
        settings: of every group, see :func:`ignite_prune.update.param_groups.build`.
        sources: data, loss function, ``prepare_batch`` and scaler of the evidence.
        masks: to start from.

    Attributes:
        groups: from :func:`ignite_prune.update.param_groups.build`.
        masks: the store.
        enforcer: keeps the zeros.
        source: feeds the evidence.
        updater: plans and commits.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        params: Any,
        settings: Mapping[str, Any],
        sources: Sequence[Any],
        masks: Mapping[str, Tensor] | None,
    ) -> None:
        self.model, self.optimizers = model, optimizers
        self._given = params, settings, sources
        self.groups: list[Group] = build(model, params, **settings)
        everything = named_parameters(model)
        chosen = {name: everything[name] for group in self.groups for name in group["params"]}
        check_held(chosen, optimizers)
        shapes = {} if self.structure is None else self.structure.origin.shapes
        if self.structure is not None and masks is not None:  # of some of what goes with a unit: all of it
            whole = self.structure.masks(self.structure.kept(masks))
            masks = {name: whole[name] for name in chosen}
        self.masks = MaskStore(chosen, masks, {name: shapes[name].numel() for name in chosen if name in shapes})
        remembered = [name for group in self.groups if group["keep_dense"] for name in group["params"]]
        self._dense = DenseValues({name: chosen[name] for name in remembered})
        self.enforcer = MaskEnforcer(self.masks, optimizers)
        self.source = EvidenceFeed(evidence_of(model, self.groups, chosen), self.groups, optimizers, *sources)
        self.updater = MaskUpdater(
            self.groups, self.masks, self._dense, self.enforcer, self.source.evidence, self.source.calibration
        )
        if masks is not None:
            self._dense.remember({}, self.masks)

    @property
    def structure(self) -> Structure | None:
        """The structure whose units are pruned."""
        structure: Structure | None = self.groups[0]["structure"]
        return structure

    @property
    def units(self) -> dict[str, tuple[int, int]]:
        """How many units of a structure's groups there were, and are left."""
        if self.structure is None:
            return {}
        origin, kept = self.structure.origin.groups, self.structure.kept(self.masks)
        names = [name for group in self.groups for name in group["units"]]
        return {name: (origin[name].size, int(kept[name].count_nonzero())) for name in names}

    def told(self) -> dict[str, float]:
        """Return what is published: sparsities."""
        told = {"global": self.masks.sparsity, **self.masks.sparsities()}
        if self.structure is not None:
            whole, left = map(sum, zip(*self.units.values()))
            told["units"] = 1 - left / whole
        return told

    def sliced(self, structure: Structure, indices: Indices) -> Pruner:
        """Let go, and return what lies over the model now that it has been sliced; its hooks are on.

        Args:
            structure: what is left.
            indices: which were kept.
        """
        from ignite_prune.structure.slicing.model_edit import cut  # slow to import

        masks = {name: cut(mask, indices.get(name, {})) for name, mask in self.masks.items()}
        params, settings, sources = self._given
        made = Pruner(self.model, self.optimizers, params, {**settings, "structure": structure}, sources, masks)
        for group, before in zip(made.groups, self.groups):
            group.update({key: before[key] for key in ("sparsity", "schedule", "allocation")})  # changed since, perhaps
        made.updater.set_generator_states(self.updater.generator_states())
        made.source.load_state_dict(made.source.checked(self.source.sliced_state(indices)))
        self.remove()  # nothing has been let go of where one of the above raises
        made.keep()
        return made

    def keep(self) -> None:
        """Put the hooks on that keep zeros, and mask what is not 0."""
        self.enforcer.install()
        self.enforcer.settle()

    def remove(self) -> None:
        """Take every hook off."""
        self.enforcer.remove()
        self.source.remove()

    def update(self, targets: Sequence[float]) -> None:
        """Plan all groups, on every rank alike, then commit; where planning raises, nothing has changed."""
        self.updater.commit(self.plan(targets), targets)

    def plan(self, targets: Sequence[float]) -> Plan:
        """Plan all groups, on every rank alike; nothing changes."""
        self.check_parameters()
        self.updater.check(targets)
        return agree(lambda: self.updater.plan(targets), self.masks)

    def restore(self) -> None:
        """Lift the masks; kept values come back."""
        self._dense.bring_back({name: self.masks[name] for name in self._dense})
        self.masks.clear()
        for group in self.groups:
            group["sparsity"] = 0.0

    def check_parameters(self) -> None:
        """Raise where the model has other parameter objects by now than those the masks lie over."""
        check_same(self.model, self.masks.parameters, "PruneHandler, with masks=pruner.masks")

    def state_dict(self) -> dict[str, Any]:
        """Return masks (one bit an entry), targets, generators, kept values and evidence as plain data."""
        return {
            "masks": self.masks.state_dict(),
            "sparsities": [float(group["sparsity"]) for group in self.groups],
            "generators": self.updater.generator_states(),
            "dense": self._dense.state_dict(self.masks),
            "evidence": self.source.state_dict(),
            "reached": self.updater.reached(),
        }

    def checked(self, state: PrunerState) -> Callable[[], None]:
        """Return what takes a state over, or raise with nothing changed."""
        masks = self.masks.unpacked(state.masks)
        dense = self._dense.unpacked(state.dense, masks)
        evidence = self.source.checked(state.evidence)

        def take() -> None:
            self.masks.update(masks)
            self._dense.take(dense)
            self.source.load_state_dict(evidence)
            for group, sparsity in zip(self.groups, state.sparsities):
                group["sparsity"] = sparsity
            self.updater.set_generator_states(state.generators)
            self.updater.forget_scores(state.reached)
            self.keep()

        return take

    def targets(self, step: float) -> list[float]:
        """Return each group's target by its schedule, or what stands in it where it has none."""
        return [
            as_sparsity(group["sparsity"] if group["schedule"] is None else group["schedule"](step))
            for group in self.groups
        ]
