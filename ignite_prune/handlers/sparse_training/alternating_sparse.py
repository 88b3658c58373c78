"""AlternatingSparse: dense and sparse phases in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from ignite_prune._utils.arguments import check_is, check_positive
from ignite_prune._utils.recorded_arguments import RecordedArguments
from ignite_prune.core.moments import zero_slots_
from ignite_prune.core.optimizers import as_optimizers
from ignite_prune.handlers.attachment import AnyEvent
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.schedule import DenseSparse


class AlternatingSparse(RecordedArguments, PruneHandler):
    """AC/DC: dense warm-up, then sparse and dense phases in turn, ending sparse.

    A :class:`~ignite_prune.PruneHandler` with ``schedule.DenseSparse`` on ``EPOCH_STARTED``: new masks are chosen at
    the start of each sparse phase; in a dense phase all weights train, and previously pruned ones start from 0.

    Args:
        model: as of PruneHandler.
        optimizer: as of PruneHandler.
        params: as of PruneHandler.
        sparsity: of the sparse phases, in [0, 1].
        begin: epochs of the dense warm-up.
        phase: epochs of each phase, at least 1.
        end: the first epoch of the last, sparse phase.
        reset_momentum: set the optimizers' slots of the selected parameters to 0 at each change of phase.
        settings: other keywords of PruneHandler (allocation, pattern, saliency, ...).

    Raises:
        TypeError, ValueError: a bad argument; the model is unchanged then.

    Example:
        >>> from ignite.engine import create_supervised_trainer
        >>> model = nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> AlternatingSparse(model, optimizer, sparsity=0.5, begin=1, phase=1, end=4).attach(trainer)
        >>> sparsities = []
        >>> tell = lambda engine: sparsities.append(engine.state.sparsity["global"])
        >>> _ = trainer.add_event_handler(Events.EPOCH_COMPLETED, tell)
        >>> _ = trainer.run([(torch.randn(2, 8), torch.randn(2, 4))], max_epochs=5)
        >>> sparsities
        [0.0, 0.5, 0.0, 0.5, 0.5]

    References:
        Peste, Iofinova, Vladu, Alistarh, "AC/DC: alternating compressed/decompressed training of deep neural
        networks", 2021, arXiv 2106.12379.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        params: Any = None,
        *,
        sparsity: float,
        begin: float,
        phase: int,
        end: float,
        reset_momentum: bool = False,
        **settings: Any,
    ) -> None:
        check_is("reset_momentum", reset_momentum, bool)
        check_positive("phase", phase, whole=True)
        if "schedule" in settings:
            raise TypeError(
                "AlternatingSparse makes its schedule of begin, phase and end; take PruneHandler for another"
            )
        phases = DenseSparse(sparsity, begin=begin, end=end, sparse=phase, dense=phase)
        if reset_momentum and not as_optimizers(optimizer):
            raise ValueError("reset_momentum=True needs the optimizer that trains the model, but given none")
        super().__init__(model, optimizer, params, schedule=phases, **settings)
        self._reset_momentum = reset_momentum
        self.pruning.on_commit.append(self._reset)

    def attach(self, engine: Engine, event: AnyEvent = Events.EPOCH_STARTED, name: str = "sparsity") -> None:
        """Change phases on ``event`` of ``engine``; see :meth:`PruneHandler.attach`."""
        self._attach(engine, event, name)

    def _reset(self, former: Sequence[float | None], targets: Sequence[float]) -> None:
        if self._reset_momentum and list(targets) != list(former):
            for optimizer in self.pruning.optimizers:
                for parameter in self.masks.parameters.values():
                    zero_slots_(optimizer, parameter, torch.zeros_like(parameter, dtype=torch.bool))
