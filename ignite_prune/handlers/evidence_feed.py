"""EvidenceFeed: gathers a PruneHandler's evidence from the training of its model.

Hooks on the optimizers see the gradients before each step, and hooks on the model its forward passes in training mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.distributed import broadcast
from ignite_prune._utils.shard import local
from ignite_prune.core.batches import batches
from ignite_prune.core.step_hooks import Closure, closure_of, grad_scale, with_closure
from ignite_prune.evidence.collectors.base import observer_of
from ignite_prune.handlers.attachment import Attachment
from ignite_prune.update.calibration import is_at_init
from ignite_prune.update.pruner import Pruner

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence


class EvidenceFeed:
    """Feeds collectors from what a trainer does anyway, or runs their own passes over its batches.

    Nothing is installed where evidence is computed from ``data=``.

    Args:
        pruner: whose evidence it is.
        evidence: the pruner's.
        scaler: of a training loop with scaled gradients; None: that of the engine's state, if there is one.
        synced: whether the model's forward pass takes the buffers of rank 0, as that of DDP.
    """

    def __init__(
        self, pruner: Pruner, evidence: Evidence, scaler: torch.amp.GradScaler | None, synced: bool = False
    ) -> None:
        self._evidence, self._calibration, self._scaler = evidence, pruner.calibration, scaler
        self._synced = synced
        self._at_init = is_at_init(group["saliency"] for group in pruner.groups)
        self._engine: Engine | None = None
        self._probed: Attachment | None = None  # where it was added as a handler
        collectors = list(evidence.collectors.values())
        self._optimizers = pruner.optimizers
        self._collectors = [each for each in collectors if each.differentiated]
        self._observer = observer_of(collectors, self._scale, self._is_training)
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Install the hooks; a second call does nothing."""
        if self._evidence.from_data:
            return
        for optimizer in self._optimizers[len(self._handles) :] if self._collectors else ():
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
        self._observer.install(self._evidence.model)

    def attach(self, attachment: Attachment) -> None:
        """Gather from an engine as well."""
        self._engine = attachment.engine
        self.install()
        if not self._evidence.from_data and self._evidence.probes and self._probed is not attachment:
            self._probed = attachment
            attachment.add(Events.ITERATION_STARTED, self._probe)

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._observer.remove()
        self._engine = None

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the evidence of all ranks, if all ranks call this; see :mod:`ignite_prune.evidence.ranks`."""
        return self._evidence.state_of_ranks(0 if self._engine is None else self._engine.state.iteration)

    def _probe(self, engine: Engine) -> None:
        if self._engine is None:  # removed, for that of a sliced model
            return
        model, how = self._evidence.model, self._calibration
        device = next(model.parameters()).device
        if self._synced:  # the forward pass that follows does so too; until then other ranks have buffers of their own
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))
        for batch in batches(model, [engine.state.batch], how.loss_fn, how.prepare_batch, device):
            self._evidence.probe(batch, self._at_init)

    def _is_training(self) -> bool:
        return self._evidence.model.training and torch.is_grad_enabled()

    def _scale(self) -> float:
        scaler = self._scaler
        if scaler is None and self._engine is not None:
            held = vars(self._engine.state).get("scaler")  # where create_supervised_trainer puts it
            scaler = held if isinstance(held, torch.amp.GradScaler) else None
        return 1.0 if scaler is None else scaler.get_scale()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Collect the gradients; those of a step with a closure, which computes them, at its first evaluation."""
        if (len(args) == 1 and not kwargs) or closure_of(args, kwargs) is None:
            self._collect(optimizer)
            return None
        return with_closure(args, kwargs, lambda closure: _once(closure, lambda: self._collect(optimizer)))

    def _collect(self, optimizer: Optimizer) -> None:
        scale = grad_scale(optimizer)
        if scale is None:  # the step will be skipped: its gradients overflowed
            return
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for collector in self._collectors:
            found = {
                name: _unscaled(parameter.grad, scale)
                for name, parameter in collector.differentiated.items()
                if parameter.grad is not None and parameter in held
            }
            if found:
                collector.on_gradients(found)


def _once(closure: Closure, then: Callable[[], None]) -> Closure:
    """Return a closure that calls a function after its first evaluation."""
    pending = [then]

    def evaluate() -> Any:
        loss = closure()
        if pending:
            pending.pop()()
        return loss

    return evaluate


def _unscaled(gradient: Tensor, scale: Tensor | float) -> Tensor:
    gradient = local(gradient).detach()
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    return gradient / scale.to(gradient.device) if isinstance(scale, Tensor) else gradient


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
