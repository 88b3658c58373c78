"""create_pruning_engine: rounds of training, pruning and rewinding around an unmodified trainer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from ignite.engine import Engine, EventEnum
from torch.optim import Optimizer

from ignite_prune._utils.arguments import check_positive
from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune.handlers.attachment import published
from ignite_prune.handlers.lottery.pruning_engine import PruningEngine
from ignite_prune.handlers.lottery.results import as_evaluate
from ignite_prune.handlers.lottery.rewind import Rewind
from ignite_prune.handlers.lottery.snapshot import Snapshot, Stateful
from ignite_prune.handlers.lottery.training_segment import TrainingSegment, epoch_length_of, schedulers_on
from ignite_prune.handlers.prune_handler import PruneHandler


class _Trainers(EventEnum):
    """The event that the pruner is attached to. It is never fired: the pruning engine calls the updates."""

    BETWEEN_ROUNDS = "between_rounds"


def create_pruning_engine(
    trainer: Engine,
    pruner: PruneHandler,
    loader: Iterable[Any],
    *,
    epochs: int,
    rewind: Rewind | None = None,
    evaluator: Any = None,
    data: Iterable[Any] | None = None,
    fine_tune: int = 0,
    floor: Mapping[str, float] | None = None,
    target: float | None = None,
    schedulers: Sequence[Stateful] | None = None,
    epoch_length: int | None = None,
) -> PruningEngine:
    """Return an Ignite engine whose epochs are rounds: train, prune, rewind.

    ``engine.run(max_epochs=rounds)`` trains ``epochs`` epochs, updates the masks to the pruner's schedule of the round
    (1, 2, ...) and rewinds, ``rounds`` times; the training of each round is the fine-tuning after the last pruning. The
    trainer is not modified: it goes on counting epochs and iterations from round to round, so that its loggers and
    checkpoints distinguish the rounds. If the schedule is rewound to iteration k, each later round trains from k on.

    A ``Checkpoint`` of ``engine.to_save(model=..., optimizer=..., lr_scheduler=...)`` on any event of the trainer or of
    this engine resumes exactly, in the middle of any round, with two exceptions: on ITERATION_STARTED Ignite loses an
    iteration; and after one on the last ITERATION_COMPLETED of an epoch Ignite does not fire EPOCH_COMPLETED again, so
    your own handlers of it are not called.

    Args:
        trainer: trains the model; no pruner may be attached to it.
        pruner: not attached; its schedule counts rounds, its evidence is collected from the trainer.
        loader: the trainer's data.
        epochs: of each round.
        rewind: what is rewound to which iteration after each mask update; None: nothing, which is plain fine-tuning.
        evaluator: an Ignite engine, or a function that returns ``{name: value}``, run after each training.
        data: an Ignite evaluator's data; None: ``loader``.
        fine_tune: epochs trained once after the last round; with 0 the run ends with the last update.
        floor: ``{metric: value}``: when one falls below, the run stops before it prunes further.
        target: a sparsity at which the run stops.
        schedulers: learning-rate schedulers to rewind; None: those of Ignite that are handlers of the trainer. A
            scheduler of torch that your own handler steps has to be given, and so has one on an evaluator; the state of
            Ignite's ``ReduceLROnPlateauScheduler`` is incomplete and cannot be restored.
        epoch_length: iterations an epoch, for a loader without a length.

    Raises:
        TypeError: an argument of another type.
        ValueError: a trainer with a pruner attached, a pruner attached elsewhere, a loader without a length, an
            iteration to rewind to that no round reaches, ...; nothing has changed then.

    Example:
        >>> import torch
        >>> from ignite.engine import create_supervised_trainer
        >>> from torch import nn
        >>> from ignite_prune import schedule
        >>> model = nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> pruner = PruneHandler(model, optimizer, schedule=schedule.Geometric(rate=0.5, every=1))
        >>> batches = [(torch.randn(2, 8), torch.randn(2, 4))]
        >>> engine = create_pruning_engine(trainer, pruner, batches, epochs=2, rewind=Rewind())
        >>> state = engine.run(max_epochs=3)
        >>> [result["sparsity"] for result in engine.results], pruner.sparsity, trainer.state.epoch
        ([0.0, 0.5, 0.75], 0.875, 6)

    References:
        Frankle, Carbin, "The lottery ticket hypothesis", 2019, arXiv 1803.03635.
    """
    if not isinstance(trainer, Engine):
        raise TypeError(f"Argument trainer should be an ignite.engine.Engine, but given {type(trainer)}")
    if not isinstance(pruner, PruneHandler):
        raise TypeError(f"Argument pruner should be a PruneHandler, but given {type(pruner)}")
    check_positive("epochs", epochs, whole=True)
    if fine_tune != 0 or type(fine_tune) is not int:
        check_positive("fine_tune", fine_tune, whole=True)
    length = epoch_length_of(loader, epoch_length)
    check_positive("epoch_length", length, whole=True)
    if rewind is not None and not isinstance(rewind, Rewind):
        raise TypeError(f"Argument rewind should be a Rewind or None, but given {rewind!r}")
    shortest = min(epochs, fine_tune or epochs) * length
    if rewind is not None and rewind.iteration >= shortest:
        raise ValueError(
            f"Argument rewind: iteration {rewind.iteration} is never snapshotted with something left to train, as "
            f"{'a round' if epochs * length == shortest else 'the fine-tuning'} has {shortest} iterations"
        )
    if target is not None:
        target = as_sparsity(target, "target")
    _check_floor(floor, evaluator)
    evaluate = as_evaluate(evaluator, data, loader)
    rivals = [name for name in published(trainer) if "global" in vars(trainer.state).get(name, {})]
    if rivals:
        raise ValueError(
            f"Argument trainer is pruned already, by a handler that publishes trainer.state.{rivals[0]}; detach() it, "
            "and give the pruner to the pruning engine alone"
        )
    optimizers = pruner.pruning.optimizers
    found = schedulers_on(trainer) if schedulers is None else schedulers
    unseen = schedulers is None and not found and any(map(_is_scheduled, optimizers))
    if unseen and rewind is not None and rewind.schedule:
        raise ValueError(
            "Argument schedulers: a scheduler of torch was made for the optimizer, and no handler of the trainer is a "
            "scheduler; give schedulers=[it], or schedulers=[] where none is to be rewound"
        )
    snapshot = None if rewind is None else Snapshot(rewind, pruner.pruning.model, optimizers, found)
    trainer.register_events(*_Trainers)  # registering an event again does nothing
    pruner.attach(trainer, _Trainers.BETWEEN_ROUNDS)
    segment = TrainingSegment(trainer, loader, length)
    return PruningEngine(
        segment, pruner, snapshot, evaluate, epochs=epochs, fine_tune=fine_tune, floor=floor, target=target
    )


def _is_scheduled(optimizer: Optimizer) -> bool:
    """Return whether a learning-rate scheduler of torch was made for an optimizer: it wraps ``step``."""
    return bool(getattr(optimizer.step, "_wrapped_by_lr_sched", False))


def _check_floor(floor: Any, evaluator: Any) -> None:
    if floor is None:
        return
    if not isinstance(floor, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Real) for name, value in floor.items()
    ):
        raise TypeError(f"Argument floor should be a mapping {{metric: value}}, but given {floor!r}")
    if any(math.isnan(value) for value in floor.values()):
        raise ValueError(f"Argument floor should hold numbers, and not NaN, but given {floor!r}")
    if evaluator is None:
        raise ValueError("Argument floor needs an evaluator that gives the metric")
