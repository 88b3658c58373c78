"""ProgressiveMasks: a pruner's updates in sub-steps, so that the model has time to adapt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor

from ignite_prune._utils.arguments import check_positive
from ignite_prune._utils.recorded_arguments import RecordedArguments
from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune._utils.state import checked_int
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.handlers.attachment import AnyEvent, Attachment
from ignite_prune.handlers.base import BaseHandler
from ignite_prune.handlers.describe import counted
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.regularise.progressive import part_way
from ignite_prune.update.agreement import agreed, announced
from ignite_prune.update.plan import UpdatePlan


class ProgressiveMasks(RecordedArguments, BaseHandler):
    """Brings a pruner from each of its masks to the next in sub-steps, the entries of the least magnitude first.

    A block or a channel loses its entries gradually. On every ``steps``-th event the pruner plans its next masks; on
    that event and the next ``steps - 1`` an equal part of the difference is pruned, so that the schedule's sparsity is
    reached ``steps - 1`` events after its step. Attach and finalize this instead of the pruner, and put both in the
    checkpoint.

    Args:
        pruner: not attached, without repairs: they would be computed for a later mask.
        steps: sub-steps of one update, at least 1.

    Raises:
        TypeError, ValueError: a bad argument.

    Example:
        >>> import torch
        >>> from ignite.engine import create_supervised_trainer
        >>> from torch import nn
        >>> from ignite_prune import pattern, schedule
        >>> model = nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> pruner = PruneHandler(
        ...     model, optimizer, schedule=schedule.OneShot(0.5, at=1), pattern=pattern.Block((4, 1)))
        >>> ProgressiveMasks(pruner, steps=4).attach(trainer)
        >>> seen = []
        >>> _ = trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(pruner.sparsity))
        >>> _ = trainer.run([(torch.randn(2, 8), torch.randn(2, 4))], max_epochs=5)
        >>> seen
        [0.125, 0.25, 0.375, 0.5, 0.5]

    References:
        Intel Neural Compressor's progressive pruning.
    """

    KEYS = ("left", "targets", "towards", "names")

    def __init__(self, pruner: PruneHandler, steps: int = 4) -> None:
        if not isinstance(pruner, PruneHandler):
            raise TypeError(f"Argument pruner should be a PruneHandler, but given {type(pruner)}")
        check_positive("steps", steps, whole=True)
        if any(group["repair"] for group in pruner.param_groups):
            raise ValueError("Argument pruner should have no repair: it would be of a mask that comes sub-steps later")
        super().__init__()
        self._pruner, self._steps = pruner, steps
        self._left = 0  # sub-steps until the present update is complete
        self._towards: dict[str, Tensor] = {}
        self._targets: list[float] = []

    def attach(self, engine: Engine, event: AnyEvent = Events.EPOCH_COMPLETED, name: str = "sparsity") -> None:
        """Attach the pruner to ``engine``, a sub-step each ``event``; as :meth:`PruneHandler.attach` otherwise."""
        try:
            self._check_usable()
        except Exception as error:
            self._pruner._check_ranks(error, "")
            raise
        self._pruner._attach(engine, event, name, self._update_at)

    @property
    def attached_to(self) -> Engine | None:
        """The engine that the pruner is attached to."""
        return self._pruner.attached_to

    def _start(self, attachment: Attachment) -> None:
        self._pruner._start(attachment)

    def _stop(self) -> None:
        self._pruner.detach()

    def _bake(self) -> None:
        self._pruner.finalize()

    def _report(self) -> dict[str, float]:
        return self._pruner._report()

    def _where(self) -> str:
        return self._pruner._where()

    def _describe(self) -> list[str]:
        return [type(self._pruner.pruning.model).__name__, f"{self._left} of {counted(self._steps, 'sub-step')} left"]

    def _update_at(self, step: int, done: Callable[[], None]) -> None:
        pruning = self._pruner.pruning
        left, towards = self._left or self._steps, self._towards
        with announced():
            targets = self._targets if self._left else pruning.targets(step)

        def plan(targets: Sequence[float]) -> UpdatePlan:
            nonlocal towards
            if not self._left:
                towards = dict(pruning.plan(targets).masks)
            return agreed(lambda: self._sub_step(towards, left), pruning.masks)

        def end() -> None:
            vars(self).update(_left=left - 1, _towards=towards, _targets=targets)
            done()

        pruning.update(targets, plan, end, whole=left == 1)
        self._pruner._updated()

    def _sub_step(self, towards: Mapping[str, Tensor], left: int) -> UpdatePlan:
        masks, weights = self._pruner.masks, self._pruner.masks.parameters
        return UpdatePlan(
            {
                name: part_way(masks[name], after, weights[name].detach().abs(), 1 / left)
                for name, after in towards.items()
            }
        )

    # Checkpoints

    def _state(self) -> dict[str, Any]:
        return {
            "left": self._left,
            "targets": list(self._targets),
            "towards": MaskStore(self._pruner.masks.parameters, {**self._pruner.masks, **self._towards}).state_dict(),
            "names": list(self._towards),
        }

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        left = checked_int("number of sub-steps left", state["left"], 0, self._steps)
        groups = len(self._pruner.param_groups)
        if not isinstance(state["targets"], list) or len(state["targets"]) not in {groups, groups if left else 0}:
            raise ValueError(f"The checkpoint's ProgressiveMasks should have {groups} targets")
        targets = [as_sparsity(target) for target in state["targets"]]
        masks = MaskStore(self._pruner.masks.parameters).unpacked(state["towards"])
        names = state["names"]
        if not isinstance(names, list) or not all(isinstance(each, str) and each in masks for each in names):
            raise ValueError("The checkpoint's ProgressiveMasks is of other parameters")

        def load() -> None:
            self._left, self._targets = left, targets
            self._towards = {name: masks[name] for name in names}

        return load
