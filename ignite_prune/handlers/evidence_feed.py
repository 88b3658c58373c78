"""EvidenceFeed: gathers a PruneHandler's evidence from the trainer that it is attached to, or from calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events

from ignite_prune.evidence.calibration import batches
from ignite_prune.evidence.training_feed import TrainingFeed
from ignite_prune.handlers.attachment import Attachment
from ignite_prune.update.calibration import is_at_init
from ignite_prune.update.pruner import Pruner

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence
    from ignite_prune.structure import Indices


class EvidenceFeed:
    """Gathers evidence, and keeps it in checkpoints.

    Args:
        pruner: whose evidence it is.
        evidence: the pruner's.
        scaler: of a training loop with scaled gradients; None: that of the engine's state, if there is one.
    """

    def __init__(self, pruner: Pruner, evidence: Evidence, scaler: torch.amp.GradScaler | None) -> None:
        self._evidence, self._calibration, self._scaler = evidence, pruner.calibration, scaler
        self._at_init = is_at_init(group["saliency"] for group in pruner.groups)
        self._from_data = pruner.calibration.data is not None
        self._engine: Engine | None = None
        self._probed: Attachment | None = None  # where it was added as a handler
        optimizers = [] if self._from_data else pruner.optimizers
        self._feed = TrainingFeed(evidence, evidence.model, optimizers, self._scale)

    # Feeding

    def install(self) -> None:
        """Install the hooks that gather evidence from training."""
        if not self._from_data:
            self._feed.install()

    def attach(self, attachment: Attachment) -> None:
        """Gather from an engine as well."""
        self._engine = attachment.engine
        self.install()
        if not self._from_data and self._evidence.probes and self._probed is not attachment:
            self._probed = attachment
            attachment.add(Events.ITERATION_STARTED, self._probe)

    def remove(self) -> None:
        """Remove every hook."""
        self._feed.remove()
        self._engine = None

    def _probe(self, engine: Engine) -> None:
        if self._engine is None:  # removed, for that of a sliced model
            return
        model, how = self._evidence.model, self._calibration
        device = next(model.parameters()).device
        for batch in batches(model, [engine.state.batch], how.loss_fn, how.prepare_batch, device):
            self._evidence.probe(batch, self._at_init)

    def _scale(self) -> float:
        scaler = self._scaler
        if scaler is None and self._engine is not None:
            held = vars(self._engine.state).get("scaler")  # where create_supervised_trainer puts it
            scaler = held if isinstance(held, torch.amp.GradScaler) else None
        return 1.0 if scaler is None else scaler.get_scale()

    # State

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the gathered evidence; evidence that is computed from data at each update is left out."""
        return self._evidence.state_dict(lasting_alone=self._from_data)

    def sliced_state(self, indices: Indices) -> list[dict[str, Any]]:
        """Return what remains of it if the parameters keep these indices; evidence from data is left out."""
        return self._evidence.sliced_state(indices, lasting_alone=self._from_data)

    def checked(self, state: Any) -> list[dict[str, Any]]:
        """Return a state that fits, or raise."""
        return self._evidence.checked(state)

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Load a checked state."""
        self._evidence.load_state_dict(state)


def check_sources(pruner: Pruner) -> None:
    """Raise if evidence or repairs need data, a loss or an optimizer that was not given.

    Raises:
        ValueError: says which argument is missing.
    """
    data, loss_fn = pruner.calibration.data, pruner.calibration.loss_fn
    collectors = [] if pruner.evidence is None else list(pruner.evidence.collectors.values())
    if data is None and any(repair.passes for group in pruner.groups for repair in group["repair"]):
        raise ValueError("A repair runs the pruned model over batches: give data= to the PruneHandler")
    if loss_fn is None and any(c.probes or (data is not None and c.backward) for c in collectors):
        raise ValueError("A saliency or repair needs the loss, in passes of its own: give loss_fn= to the PruneHandler")
    if data is None and not pruner.optimizers and any(c.differentiated for c in collectors):
        raise ValueError(
            "A saliency or repair needs gradients: give the PruneHandler the optimizer that steps with them, or data="
        )
