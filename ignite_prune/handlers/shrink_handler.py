"""ShrinkHandler: pruned units are sliced off while an Ignite engine goes on training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from ignite_prune._utils.recorded_arguments import RecordedArguments
from ignite_prune.handlers.attachment import AnyEvent, Attachment
from ignite_prune.handlers.base import BaseHandler
from ignite_prune.handlers.describe import counted
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.structure import Report
from ignite_prune.structure.kept_indices import KeptIndices
from ignite_prune.structure.slicing.checkpoint import from_plain, rates_from_plain, then, to_plain
from ignite_prune.structure.slicing.model_edit import ModelEdit, check_free, undone_on_error
from ignite_prune.structure.slicing.module_attributes import dropout_rates
from ignite_prune.structure.slicing.shrink import as_copies, sliced


class ShrinkHandler(RecordedArguments, BaseHandler):
    """Slices off what a pruner with a structure has pruned, mid-training: the rest of the run trains a smaller model.

    Model, gradients, optimizer slots, buffers, the pruner's masks and its evidence are sliced together; the sliced
    model is compared with the masked one, and restored if they differ. In a checkpoint it comes *before* model and
    optimizer, see :meth:`to_save`: when it is loaded, it slices a newly built full-size model.

    Args:
        pruner: made with ``structure=``.
        example_inputs: what the model takes: a tensor, a tuple of arguments, or a dict of keyword arguments.
        ema: copies of the model, sliced in the same way.
        scale_dropout: lower the rate of each Dropout module by the fraction of units that it has lost.

    Attributes:
        reports: what each slicing did, in this process.
        left: which indices are left of the full-size model's tensors, by name and dimension.

    Raises:
        TypeError, ValueError: a pruner without a structure, or with ``keep_dense=True``.

    Example:
        >>> import torch
        >>> from ignite.engine import create_supervised_trainer
        >>> from ignite_prune import schedule
        >>> from ignite_prune.structure import trace
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> x = torch.randn(1, 4)
        >>> pruner = PruneHandler(model, optimizer, structure=trace(model, x), schedule=schedule.OneShot(0.5, at=1))
        >>> pruner.attach(trainer)
        >>> ShrinkHandler(pruner, x).attach(trainer, Events.EPOCH_COMPLETED(once=2))
        >>> _ = trainer.run([(torch.randn(3, 4), torch.randn(3, 2))], max_epochs=3)
        >>> model[0]
        Linear(in_features=4, out_features=4, bias=True)
    """

    KEYS = ("left", "rates", "progress")
    VARYING = ("left", "rates")
    MAIN = "parameters"

    def __init__(
        self,
        pruner: PruneHandler,
        example_inputs: Any,
        *,
        ema: nn.Module | Sequence[nn.Module] | None = None,
        scale_dropout: bool = False,
    ) -> None:
        if not isinstance(pruner, PruneHandler):
            raise TypeError(f"Argument pruner should be a PruneHandler, but given {type(pruner)}")
        if pruner.structure is None:
            raise ValueError("Argument pruner should be made with structure=trace(model, example_inputs)")
        if any(group["keep_dense"] for group in pruner.param_groups):
            raise ValueError("Argument pruner: with keep_dense=True values come back, but what is sliced off cannot")
        super().__init__()
        self.reports: list[Report] = []
        self._pruner, self._inputs, self._scale_dropout = pruner, example_inputs, scale_dropout
        self._ema = as_copies(ema)
        self.left = KeptIndices()
        self._is_before = False

    def attach(self, engine: Engine, event: AnyEvent = Events.COMPLETED, name: str = "shrunk") -> None:
        """Slice on ``event`` of ``engine``; attach it after the pruner, so that masks are updated before.

        A slicing whose checkpoint was written just before it is made when the resumed run starts.

        Args:
            engine: the trainer.
            event: any event, filtered too.
            name: ``engine.state.<name>`` is ``{"parameters": how many numbers the model has}``, and
                ``engine.state.metrics["<name>"]`` that number.

        Raises:
            TypeError: not an engine, an event, a name.
            ValueError: attached already, finalized, or the pruner's model is wrapped in DDP.
        """
        if self._pruner.is_wrapped:
            raise ValueError(
                "The pruner's model is wrapped in DDP, which would hold on to the old parameters; call shrink() "
                "between two runs, and wrap the model again"
            )
        self._attach(engine, event, name)

    def _start(self, attachment: Attachment) -> None:
        self._is_before = self._pruner.attached_to is None

    def _stop(self) -> None:
        """There is no hook."""

    def _update_at(self, step: int, done: Callable[[], None]) -> None:
        if self._is_before and self._pruner.attached_to is not None:
            self._is_before = False
            warnings.warn(
                "The ShrinkHandler was attached before the pruner: at one event it slices before the masks are "
                "updated. Attach the pruner first",
                stacklevel=2,
            )
        self.shrink()
        done()

    def _report(self) -> dict[str, float]:
        return {"parameters": float(sum(each.numel() for each in self._pruner.pruning.model.parameters()))}

    def _describe(self) -> list[str]:
        model = self._pruner.pruning.model
        return [
            type(model).__name__,
            f"{self._report()['parameters']:.0f} parameters",
            counted(len(self.reports), "slicing"),
        ]

    def shrink(self) -> Report:
        """Remove all pruned units from the model now.

        Raises:
            ValueError: as :func:`ignite_prune.shrink`, or finalized; nothing has changed then.
        """
        self._check_usable()
        pruner, structure = self._pruner, self._pruner.structure
        assert structure is not None
        kept = structure.kept(pruner.masks)
        pruning = pruner.pruning
        check_free(pruning.model, structure.indices(kept), pruning.enforcer.hooked)
        left, reports = self.left, self.reports
        undo = [lambda: vars(self).update(left=left, reports=reports), pruner.way_back()]
        with sliced(
            pruning.model,
            pruning.masks,
            kept,
            self._inputs,
            structure,
            pruning.optimizers,
            self._ema,
            self._scale_dropout,
            undo,
        ) as report:
            if report.indices:
                pruner.follow(structure.sliced(kept), report.indices)
            vars(self).update(left=then(left, report.indices), reports=[*reports, report])
        self._publish()
        return report

    # Checkpoints

    def to_save(self, **objects: Any) -> dict[str, Any]:
        """Return what a ``Checkpoint`` should save and load, in the right order: this handler first, then the others.

        Args:
            objects: model, optimizer, pruner, trainer, ... by name.
        """
        return {"shrinker": self, **objects}

    def _state(self) -> dict[str, Any]:
        rates = dropout_rates(self._pruner.pruning.model) if self._scale_dropout else {}
        return {"left": to_plain(self.left), "rates": rates}

    def _upgraded(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"rates": {}, **state}

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return a function that slices a newly built, full-size model; load model and optimizer afterwards."""
        if self.left:
            raise ValueError("The model has been sliced already; load a checkpoint into one that is freshly built")
        pruner, structure = self._pruner, self._pruner.structure
        assert structure is not None
        indices = from_plain(state["left"], pruner.pruning.model)
        rates = rates_from_plain(state["rates"], pruner.pruning.model)
        kept = structure.kept_by(indices)
        indices = structure.indices(kept)  # with the values of attributes
        edits = [ModelEdit(pruner.pruning.model, pruner.pruning.optimizers), *map(ModelEdit, self._ema)]

        def load() -> None:
            if self.left:  # loaded; what was cut short came after it
                return
            with undone_on_error(edits, [pruner.way_back()]):
                for edit in edits:
                    edit.slice(indices, rates)
                pruner.follow(structure.sliced(kept), indices)
                self.left = indices

        return load
