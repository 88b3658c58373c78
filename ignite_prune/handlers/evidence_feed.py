"""Where a PruneHandler's evidence comes from: the running trainer, or calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from torch.optim import Optimizer

from ignite_prune._utils.arguments import check_callable
from ignite_prune.evidence.calibration import LossFn, PrepareBatch, batches
from ignite_prune.handlers.attachment import Attachment
from ignite_prune.update.one_shot import as_passes, at_init
from ignite_prune.update.param_groups import Group
from ignite_prune.update.updater import Calibration

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence
    from ignite_prune.structure import Indices


class EvidenceFeed:
    """Feeds evidence, and keeps it in checkpoints.

    Args:
        evidence: what to gather.
        groups: whose saliencies and repairs need it.
        optimizers: those whose steps tell the gradients.
        data: calibration batches; None: from training.
        loss_fn: the loss of passes of its own.
        prepare_batch: takes a batch apart.
        scaler: of a training loop with scaled gradients; None: that of the engine's state, if there is one.

    Raises:
        TypeError: an argument is not what it should be.
        ValueError: what is needed was not given.
    """

    def __init__(
        self,
        evidence: Evidence,
        groups: Sequence[Group],
        optimizers: Sequence[Optimizer],
        data: Iterable[Any] | None,
        loss_fn: LossFn | None,
        prepare_batch: PrepareBatch | None,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        from ignite_prune.evidence.training_feed import TrainingFeed  # slow to import

        self.evidence = evidence
        self._loss_fn, self._prepare, self._scaler, self._at_init = loss_fn, prepare_batch, scaler, at_init(groups)
        self._engine: Engine | None = None
        _check(evidence, groups, optimizers, data, loss_fn, prepare_batch, scaler)
        self.calibration: Calibration | None = None
        if data is not None:
            passes = as_passes(evidence.model, data, loss_fn, prepare_batch)
            assert passes is not None
            self.calibration = Calibration(lambda: self._calibrate(data), passes)
        self._feed = TrainingFeed(evidence, evidence.model, [] if data is not None else optimizers, self._scale)

    def _calibrate(self, data: Iterable[Any]) -> None:
        self.evidence.calibrate(data, self._loss_fn, self._prepare, self._at_init)

    # Feeding

    def install(self) -> None:
        """Put the hooks on that listen to training."""
        if self.calibration is None:
            self._feed.install()

    def attach(self, attachment: Attachment) -> None:
        """Listen to an engine as well."""
        self._engine = attachment.engine
        self.install()
        if self.calibration is None and self.evidence.probes:
            attachment.add(Events.ITERATION_STARTED, self._probe)

    def remove(self) -> None:
        """Take every hook off."""
        self._feed.remove()
        self._engine = None

    def _probe(self, engine: Engine) -> None:
        device = next(self.evidence.model.parameters()).device
        for batch in batches(self.evidence.model, [engine.state.batch], self._loss_fn, self._prepare, device):
            self.evidence.probe(batch, self._at_init)

    def _scale(self) -> float:
        scaler = self._scaler
        if scaler is None and self._engine is not None:
            held = vars(self._engine.state).get("scaler")  # where create_supervised_trainer puts it
            scaler = held if isinstance(held, torch.amp.GradScaler) else None
        return 1.0 if scaler is None else scaler.get_scale()

    # State

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what is gathered; nothing of what comes from data anew at each update."""
        return self.evidence.state_dict(lasting_alone=self.calibration is not None)

    def sliced_state(self, indices: Indices) -> list[dict[str, Any]]:
        """Return what is left of it where the parameters keep these indices; nothing of what comes from data anew."""
        return self.evidence.sliced_state(indices, lasting_alone=self.calibration is not None)

    def checked(self, state: Any) -> list[dict[str, Any]]:
        """Return a state that fits, or raise."""
        return self.evidence.checked(state)

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take a checked state."""
        self.evidence.load_state_dict(state)


def _check(
    evidence: Evidence,
    groups: Sequence[Group],
    optimizers: Sequence[Optimizer],
    data: Any,
    loss_fn: Any,
    prepare_batch: Any,
    scaler: Any,
) -> None:
    check_callable("loss_fn", loss_fn)
    check_callable("prepare_batch", prepare_batch)
    if data is not None and (isinstance(data, Iterator) or not isinstance(data, Iterable)):
        raise TypeError(
            "Argument data should be an iterable that can be gone over at each update (a DataLoader, a list), but "
            f"given {type(data)}"
        )
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(f"Argument scaler should be a torch.amp.GradScaler, but given {type(scaler)}")
    gatherers = list(evidence.collectors.values())
    if any(repair.passes for group in groups for repair in group["repair"]) and data is None:
        raise ValueError("A repair runs the pruned model over batches: give data= to the PruneHandler")
    if loss_fn is None and any(g.probes or (data is not None and g.backward) for g in gatherers):
        raise ValueError("A saliency or repair needs the loss, in passes of its own: give loss_fn= to the PruneHandler")
    if data is None and not optimizers and any(g.differentiated for g in gatherers):
        raise ValueError(
            "A saliency or repair needs gradients: give the PruneHandler the optimizer that steps with them, or data="
        )
