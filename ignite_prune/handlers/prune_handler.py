"""PruneHandler: a model becomes sparse while an Ignite engine trains it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from ignite_prune import allocation as allocations
from ignite_prune import pattern as patterns
from ignite_prune import saliency as saliencies
from ignite_prune import schedule as schedules
from ignite_prune._utils.arguments import check_is
from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune.core.mask_enforcer import claim, release
from ignite_prune.core.mask_store import MaskStore, check_same, warn_of_nearly_empty
from ignite_prune.core.optimizer_state import as_optimizers
from ignite_prune.core.selection import unwrap
from ignite_prune.evidence.calibration import LossFn, PrepareBatch
from ignite_prune.handlers.attachment import AnyEvent, Attachment
from ignite_prune.handlers.base import BaseHandler
from ignite_prune.handlers.describe import describe_group
from ignite_prune.handlers.events import PruneEvents, fire
from ignite_prune.repair import Repair
from ignite_prune.saliency import NonFiniteSaliency, Saliency
from ignite_prune.schedule.base import check_steps
from ignite_prune.update.calibration import NO_CALIBRATION, Calibration, as_calibration
from ignite_prune.update.param_groups import ParamGroup
from ignite_prune.update.pruner import REMAKE, Pruner
from ignite_prune.update.pruner_state import PrunerState, loader_of, state_of

if TYPE_CHECKING:
    from ignite_prune.handlers.evidence_feed import EvidenceFeed
    from ignite_prune.structure import Cost, Indices, Structure


_NAMED_BY_NEED = 3  # the state version from which evidence carries the key of its need


class PruneHandler(BaseHandler):
    """Raises a model's sparsity on an engine's events and keeps its zeros zero in between.

    It masks the model's own parameters: nothing is renamed or wrapped, and the optimizers train the kept entries. Save
    the handler in the checkpoint together with the model, the optimizer and the trainer, and a resumed run continues
    bit for bit.

    Args:
        model: bare, DDP-wrapped or compiled.
        optimizer: the optimizer(s) that train it; with None the masks are applied on every ITERATION_COMPLETED.
        params: None for the weights of every linear, convolutional, recurrent and attention layer, also of other
            libraries and of the user's own (see ``docs/selection.md``); a name, a glob, a layer type or a sequence of
            them; or group dicts ``{"params": ..., any keyword below}``.
        saliency: what an entry is worth; a callable ``(name, parameter) -> Tensor`` is one too.
        schedule: step → sparsity, in the attached event's unit; with None an update aims for what stands in
            ``param_groups[i]["sparsity"]``.
        pattern: which entries go together.
        allocation: how a group's sparsity is divided over its parameters.
        exclude: rules for what to leave alone.
        keep_dense: remember pruned values, so that :meth:`restore` brings them back (one more copy of the weights).
        generator: for random saliencies; None makes one from ``torch.initial_seed()``.
        masks: bool masks to start from, by name: custom ones, or ``MaskStore.from_nonzero(model)`` for a pattern lock.
        repair: one of ``ignite_prune.repair``, or several in order: what makes up for what an update prunes.
        structure: from :func:`ignite_prune.trace`: whole units go, with all that hangs on them, and sparsity is the
            fraction of units; see ``pattern.Coupled``.
        target: what the sparsity is a fraction of, instead of units: ``structure.Parameters()``, ``Flops()``, or a
            measured ``Latency(model, example_inputs)``.
        data: calibration batches, run over before each update that prunes, for saliencies and repairs that need
            evidence; with None it is gathered from training.
        loss_fn: ``(output, target) -> scalar``, for evidence that takes passes of its own (``data``, ``GraSP``, ...).
        prepare_batch: Ignite's ``(batch, device, non_blocking) -> (x, y)``, as the trainer's.
        calibration: ``data``, ``loss_fn`` and ``prepare_batch`` as one value, instead of the three.
        scaler: the ``GradScaler`` of a loop of your own, for evidence from activations' gradients; Ignite's is found.
        shared: let other handlers mask the same parameters; otherwise :meth:`attach`, :meth:`step` and
            :meth:`load_state_dict` refuse to act while one does.

    Raises:
        TypeError, ValueError: a bad argument; the model is unchanged then.

    Example:
        >>> from ignite.engine import Events, create_supervised_trainer
        >>> model = nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> pruner = PruneHandler(model, optimizer, schedule=schedules.Polynomial(final=0.75, begin=0, end=2))
        >>> pruner.attach(trainer, Events.EPOCH_COMPLETED)
        >>> _ = trainer.run([(torch.randn(2, 8), torch.randn(2, 4))], max_epochs=2)
        >>> trainer.state.sparsity["global"], pruner.masks.kept("weight")
        (0.75, 8)
    """

    MASKS_UPDATED = PruneEvents.MASKS_UPDATED
    VERSION = 3  # 1 had no evidence; 2 named evidence by the representation of its fields
    KEYS = ("progress", "masks", "sparsities", "generators", "dense", "evidence", "reached")
    MAIN = "global"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        params: Any = None,
        *,
        saliency: Saliency | Callable[[str, Tensor], Tensor] = saliencies.Magnitude(),
        schedule: schedules.Schedule | None = None,
        pattern: patterns.Pattern = patterns.Unstructured(),
        allocation: allocations.Allocation = allocations.Global(),
        exclude: Any = (),
        keep_dense: bool = False,
        generator: torch.Generator | None = None,
        masks: Mapping[str, Tensor] | None = None,
        repair: Repair | Sequence[Repair] | None = None,
        structure: Structure | None = None,
        target: Cost | None = None,
        data: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
        prepare_batch: PrepareBatch | None = None,
        calibration: Calibration | None = None,
        scaler: torch.amp.GradScaler | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        if shared is not False:
            check_is("shared", shared, bool)
        self._shared = shared
        settings = {
            "sparsity": 0.0,
            "saliency": saliency,
            "schedule": schedule,
            "pattern": pattern,
            "allocation": allocation,
            "exclude": exclude,
            "keep_dense": keep_dense,
            "generator": generator,
            "repair": repair,
            "structure": structure,
            "target": target,
        }
        if calibration is not None or data is not None or loss_fn is not None or prepare_batch is not None:
            calibration = as_calibration(calibration, data, loss_fn, prepare_batch)
            calibration.check_repeatable()
        if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
            raise TypeError(f"Argument scaler should be a torch.amp.GradScaler, but given {type(scaler)}")
        self.is_wrapped = isinstance(model, (DataParallel, DistributedDataParallel))
        self._scaler = scaler
        self.pruning = Pruner(
            unwrap(model), as_optimizers(optimizer), params, settings, calibration or NO_CALIBRATION, masks
        )
        self._feed = self._feed_of(self.pruning)
        self._warned: set[str] = set()  # parameters that a warning has named
        if self._feed is not None:
            self._feed.install()
        if masks is not None:
            self.pruning.enforce()
            self._owns = claim(self, self.masks.parameters, self._shared, check=False)

    def _feed_of(self, pruner: Pruner) -> EvidenceFeed | None:
        """Return what gathers a pruner's evidence; None where it needs none."""
        if pruner.evidence is None and not any(group["repair"] for group in pruner.groups):
            return None
        from ignite_prune.handlers.evidence_feed import EvidenceFeed, check_sources  # slow to import

        check_sources(pruner)
        return None if pruner.evidence is None else EvidenceFeed(pruner, pruner.evidence, self._scaler)

    def follow(self, structure: Structure, indices: Indices) -> None:
        """Continue on the parameters of a model that has been sliced; called by ``ShrinkHandler``.

        Args:
            structure: what is left.
            indices: which indices of each parameter were kept.
        """
        from ignite_prune.update.sliced_pruner import sliced_pruner  # slow to import

        pruning = sliced_pruner(self.pruning, structure, indices)
        feed = self._feed_of(pruning)
        if feed is not None and self._feed is not None:
            feed.load_state_dict(feed.checked(self._feed.sliced_state(indices)))
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
            claim(self, self.masks.parameters, self._shared, check=False)
        if feed is not None:
            feed.install() if self._attachment is None else feed.attach(self._attachment)

    # What it knows

    @property
    def masks(self) -> MaskStore:
        """The masks, a mapping ``{name: bool tensor}``, True = kept."""
        return self.pruning.masks

    @property
    def structure(self) -> Structure | None:
        """The structure whose units are pruned, as it is now; None where single entries or patterns are."""
        return self.pruning.structure

    @property
    def sparsity(self) -> float:
        """The pruned fraction of the selected parameters, exact count / exact count; what is sliced off is pruned."""
        return self.masks.sparsity

    @property
    def units(self) -> dict[str, tuple[int, int]]:
        """How many units of a structure's groups there were, and are left; empty without a structure."""
        return self.pruning.units

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups, each with its ``"sparsity"`` and settings; Ignite's ParamSchedulers can drive it."""
        return self.pruning.groups

    def scores(self) -> dict[str, Tensor]:
        """Return every selected parameter's saliency as of now.

        Scores that were drawn or came from a callable are not asked for again: the last update's are kept until the
        next. They are not in the checkpoint.

        Raises:
            NonFiniteSaliency: a score is NaN or infinite.
        """
        return self.pruning.scores()

    # Attaching

    def attach(self, engine: Engine, event: AnyEvent = Events.EPOCH_COMPLETED, name: str = "sparsity") -> None:
        """Update the masks on ``event`` of ``engine`` from now on, and publish the sparsity in ``engine.state``.

        ``engine.state.sparsity`` is ``{"global": float, "<parameter>": float}``, of a structure ``"units"`` too;
        ``engine.state.metrics["sparsity"]`` is the global one alone.

        Args:
            engine: the trainer.
            event: any event, filtered too; its count (epochs, iterations) is the schedule's step. An event without a
                count is counted here.
            name: what the sparsity is published as; give each of several pruners on one engine its own.

        Raises:
            TypeError: not an engine, not an event, not a name.
            ValueError: attached already, finished, an event that the engine does not know, a name that is taken, or
                parameters of the model that have been replaced.
        """
        self._attach(engine, event, name)

    def _start(self, attachment: Attachment) -> None:
        if not self.pruning.optimizers:
            attachment.add(Events.ITERATION_COMPLETED, self._bake)
        if self._feed is not None:
            self._feed.attach(attachment)
        self.pruning.keep()

    def _stop(self) -> None:
        self.pruning.enforcer.remove()
        if self._feed is not None:
            self._feed.remove()

    def _masked(self) -> Mapping[str, nn.Parameter]:
        return self.masks.parameters

    def _check_parameters(self) -> None:
        check_same(self.pruning.model, self.masks.parameters, REMAKE)

    def _bake(self) -> None:
        self.masks.apply_()

    # Updating

    def step(self, sparsity: float | None = None, *, at: float | None = None) -> float:
        """Update the masks now, in any loop: to ``sparsity``, to ``schedule(at)``, or to what ``param_groups`` say.

        Returns:
            The sparsity reached.

        Raises:
            TypeError, ValueError: a bad argument, or a saliency that is not finite. Nothing is changed then.
        """
        if self._finalized:
            self._check_usable()
        if sparsity is not None and at is not None:
            raise ValueError("step() takes a sparsity or at=, not both")
        groups = self.pruning.groups
        if sparsity is not None:
            targets = [as_sparsity(sparsity)] * len(groups)
        elif at is not None:
            if all(group["schedule"] is None for group in groups):
                raise ValueError("step(at=...) needs a schedule, but this PruneHandler was given none")
            check_steps(at=at)
            targets = self.pruning.targets(at)
        else:
            targets = [as_sparsity(group["sparsity"]) for group in groups]
        owned = self._owns
        if not owned:
            self._owns = claim(self, self.pruning.masks.parameters, self._shared)
        try:
            self.pruning.update(targets)
        except BaseException:
            if not owned:
                release(self)
                self._owns = False
            raise
        self._updated()
        return self.pruning.masks.sparsity

    def restore(self) -> None:
        """Bring back the original structure: masks off; with ``keep_dense=True`` pruned values come back too.

        ``param_groups[i]["sparsity"]`` is 0 afterwards; a schedule prunes again at its next update.
        """
        self._check_usable()
        self.pruning.restore()
        self._publish()

    def _update_at(self, step: int, done: Callable[[], None]) -> None:
        assert self._attachment is not None
        engine = self._attachment.engine
        try:
            self.pruning.update(self.pruning.targets(step), done=done)
        except NonFiniteSaliency as error:
            if not engine.should_terminate:
                raise
            warnings.warn(f"The run is being terminated, so a mask update is left out: {error}", stacklevel=2)
            return
        self._updated()

    def _updated(self) -> None:
        """Publish and report an update."""
        if self._attachment is not None:
            self._publish()
            fire(self._attachment.engine, PruneEvents.MASKS_UPDATED)
        warn_of_nearly_empty(self.pruning.masks, self._warned)

    def _report(self) -> dict[str, float]:
        return self.pruning.sparsities()

    # Checkpoints

    def _state(self) -> dict[str, Any]:
        return state_of(self.pruning, [] if self._feed is None else self._feed.state_dict())

    def _upgraded(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"evidence": [], "reached": [None] * len(self.param_groups), **state} if state["version"] < 2 else state

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        self._check_free()
        fitting = PrunerState.checked(state, self.pruning.groups)
        load_masks = loader_of(self.pruning, fitting)
        evidence = self._checked_evidence(fitting.evidence, state["version"])

        def load() -> None:
            load_masks()
            if self._feed is not None:
                self._feed.load_state_dict(evidence)
            self._own()

        return load

    def _checked_evidence(self, state: Any, version: int) -> list[dict[str, Any]]:
        try:
            if self._feed is not None:
                return self._feed.checked(state)
            if not isinstance(state, list) or state:
                raise ValueError(
                    "The checkpoint's pruner and this one should gather the same evidence (the same saliency and "
                    "repair)"
                )
        except ValueError as error:
            if version >= _NAMED_BY_NEED:  # a misfit is the user's then, not the version's
                raise
            raise ValueError(
                f"The checkpoint was written with state version {version}, and its evidence does not fit: {error}. To "
                "continue with the masks alone, replace each entry of its 'evidence' by {}"
            ) from error
        return []

    def _describe(self) -> list[str]:
        groups = [
            f"group {index}: {describe_group(group, self._masked())}" for index, group in enumerate(self.param_groups)
        ]
        return [f"model: {type(self.pruning.model).__name__}", *groups, f"sparsity: {self.sparsity:.4g}"]
