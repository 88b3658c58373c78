"""PruneHandler: a model becomes sparse while an Ignite engine trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

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
from ignite_prune._utils.distributed import raise_together, world_size
from ignite_prune._utils.extras import needed
from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune.core.check_report import CheckReport
from ignite_prune.core.claims import claim, release
from ignite_prune.core.mask_store import warn_of_nearly_empty
from ignite_prune.core.optimizers import as_optimizers
from ignite_prune.core.selection import unwrap
from ignite_prune.handlers.attached_pruner import AttachedPruner
from ignite_prune.handlers.attachment import AnyEvent
from ignite_prune.handlers.events import PruneEvents
from ignite_prune.repair import Repair
from ignite_prune.saliency import Saliency
from ignite_prune.schedule.base import check_steps
from ignite_prune.update.agreement import REFUSED
from ignite_prune.update.calibration import NO_CALIBRATION, Calibration, as_calibration
from ignite_prune.update.param_group import UNSET
from ignite_prune.update.param_groups import warn_of_unset
from ignite_prune.update.pruner import Pruner

if TYPE_CHECKING:
    from ignite_prune.core.batches import LossFn, PrepareBatch
    from ignite_prune.structure import Cost, Structure


class PruneHandler(AttachedPruner):
    """Raises a model's sparsity on an engine's events and keeps its zeros zero in between.

    It masks the model's own parameters: nothing is renamed or wrapped, and the optimizers train the kept entries. Save
    the handler in the checkpoint together with the model, the optimizer and the trainer, and a resumed run continues
    bit for bit.

    Args:
        model: bare, DDP-wrapped or compiled.
        optimizer: the optimizer(s) that train it, wrappers too; with None every optimizer that steps the parameters is
            found, and the masks are applied on ITERATION_COMPLETED as well, for steps that are made otherwise.
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
        compress_masks: write masks with an entropy code in checkpoints: at 90 % 0.48 bits for each entry instead of 1
            (requires NumPy). Either form is read.
        strict: raise :class:`~ignite_prune.PrunedWeightsAlive` where pruned weights turn out not to be 0, instead of
            masking them again with a warning.
        unreached: what to do with a parameter that no data has reached, such as an expert without tokens, where the
            saliency needs evidence: ``"raise"`` MissingEvidence, or ``"keep"`` it as it is, with a
            warning, until data reaches it.
        verify: compare the masks of ranks that hold the same weights by checksums: ``"never"``, before each
            ``"checkpoint"`` (every rank calls :meth:`state_dict` then), or before each ``"update"`` is carried out.

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
        strict: bool = False,
        verify: Literal["never", "checkpoint", "update"] = "never",
        compress_masks: bool = False,
        unreached: Literal["raise", "keep"] = "raise",
    ) -> None:
        super().__init__()
        try:
            if shared is not False or strict is not False:
                check_is("shared", shared, bool)
                check_is("strict", strict, bool)
            if compress_masks is not False:
                check_is("compress_masks", compress_masks, bool)
                needed("numpy", "compress_masks=True")
                self._compress_masks = True
            self._shared = shared
            settings = {
                "sparsity": UNSET,
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
                "unreached": unreached,
            }
            if calibration is not None or data is not None or loss_fn is not None or prepare_batch is not None:
                calibration = as_calibration(calibration, data, loss_fn, prepare_batch)
                calibration.check_repeatable()
            if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
                raise TypeError(f"Argument scaler should be a torch.amp.GradScaler, but given {type(scaler)}")
            self.is_wrapped = isinstance(model, (DataParallel, DistributedDataParallel))
            self._synced = isinstance(model, DistributedDataParallel) and model.broadcast_buffers
            self._scaler = scaler
            self.pruning = Pruner(
                unwrap(model), as_optimizers(optimizer), params, settings, calibration or NO_CALIBRATION, masks, strict
            )
            if verify != "never":
                if verify not in ("checkpoint", "update"):
                    raise ValueError(
                        f"Argument verify should be 'never', 'checkpoint' or 'update', but given {verify!r}"
                    )
                self.pruning.verify = verify
            self._warned = set()
            if self.pruning.is_informed:
                self._feed = self._feed_of(self.pruning)
                if self._feed is not None:
                    self._feed.install()
            if masks is not None:
                self.pruning.enforce()
                self._owns = claim(self, self.masks.parameters, self._shared, check=False)
        except Exception as error:
            if world_size() > 1:  # a constructor may be called on one rank alone, and must not wait for the others
                from ignite_prune._utils.first_meeting import note_failure  # rarely needed

                note_failure(error)
            raise

    # What it knows

    @property
    def sparsity(self) -> float:
        """The pruned fraction of the selected parameters, exact count / exact count; what is sliced off is pruned."""
        return self.masks.sparsity

    def check(self) -> CheckReport:
        """Compare the weights with the masks, with and without an engine; nothing is changed.

        Returns:
            Which pruned weights are not 0, and the likely cause; true if all are 0, and printable.
        """
        return self.pruning.weights.report()

    def scores(self) -> dict[str, Tensor]:
        """Return every selected parameter's saliency as of now.

        Scores that were drawn or came from a callable are not asked for again: the last update's are kept until the
        next. They are not in the checkpoint.

        Raises:
            NonFiniteSaliency: a score is NaN or infinite.
        """
        self._scored = True
        return self.pruning.scores()

    # Attaching

    def attach(self, engine: Engine, event: AnyEvent = Events.EPOCH_COMPLETED, name: str = "sparsity") -> None:
        """Update the masks on ``event`` of ``engine`` from now on, and publish the sparsity in ``engine.state``.

        ``engine.state.sparsity`` is ``{"global": float, "model": float, "<parameter>": float}``, of a structure
        ``"units"`` too; ``"global"`` is of the selected parameters, ``"model"`` is :attr:`model_sparsity`;
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

    # Updating

    def step(self, sparsity: float | None = None, *, at: float | None = None) -> float:
        """Update the masks now, in any loop: to ``sparsity``, to ``schedule(at)``, or to what ``param_groups`` say.

        Returns:
            The sparsity reached.

        Raises:
            TypeError, ValueError: a bad argument, or a saliency that is not finite. Nothing is changed then.
        """
        owned = self._owns
        if not self._has_met and torch.distributed.is_available() and torch.distributed.is_initialized():
            self._meet(None, REFUSED)
        try:
            targets = self._targets(sparsity, at)
            if not owned:
                self._owns = claim(self, self.pruning.masks.parameters, self._shared)
        except Exception as error:
            raise_together(error, REFUSED)
            raise
        try:
            self.pruning.update(targets, done=partial(setattr, self, "_at", at))
        except BaseException:
            if not owned:
                release(self)
                self._owns = False
            raise
        if self._attachment is None:
            warn_of_nearly_empty(self.pruning.masks, self._warned)
        else:
            self._updated()
        return self.pruning.masks.sparsity

    def _targets(self, sparsity: Any, at: Any) -> list[float]:
        if self._finalized:
            self._check_usable()
        if sparsity is not None and at is not None:
            raise ValueError("step() takes a sparsity or at=, not both")
        groups = self.pruning.groups
        if sparsity is not None:
            return [as_sparsity(sparsity)] * len(groups)
        if at is not None:
            if all(group["schedule"] is None for group in groups):
                raise ValueError("step(at=...) needs a schedule, but this PruneHandler was given none")
            check_steps(at=at)
            return self.pruning.targets(at)
        warn_of_unset(groups, self._warned)
        return [as_sparsity(group["sparsity"]) for group in groups]

    def restore(self) -> None:
        """Bring back the original structure: masks off; with ``keep_dense=True`` pruned values come back too.

        ``param_groups[i]["sparsity"]`` is 0 afterwards; a schedule prunes again at its next update.
        """
        self._check_usable()
        self.pruning.restore()
        self._restored = True
        self._publish()
