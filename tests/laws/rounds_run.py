"""One run of a pruning engine, for a process of its own that may be killed in the middle of a round."""

import os
import signal
from pathlib import Path

import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, PiecewiseLinear
from ignite.metrics import Accuracy
from torch import nn

from ignite_prune import PruneEvents, PruneHandler
from ignite_prune.handlers import PruningEvents, create_pruning_engine
from ignite_prune.lottery.rewind import Rewind
from tests.catalogue import OPTIMIZERS, SALIENCIES, SCHEDULES, net_for, options_for
from tests.laws.resume_run import find
from tests.models import batches

LENGTH, EPOCHS, ROUNDS = 5, 2, 3


class InPlace:
    """Batches that begin where the trainer is: Ignite itself would begin a resumed epoch at its first."""

    def __init__(self, data, trainer):
        self.data, self.trainer = data, trainer

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        return iter(self.data[self.trainer.state.iteration % len(self.data) :])


def build(options):
    """Return the engine and the objects of a checkpoint."""
    torch.set_num_threads(1)
    torch.manual_seed(options.get("seed", 0))
    row = find(SALIENCIES, options.get("saliency", "magnitude"))
    model = net_for(row)
    optimizer = find(OPTIMIZERS, options.get("optimizer", "adam_amsgrad")).make(model.parameters())
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    lr = PiecewiseLinear(optimizer, "lr", [(0, 0.002), (4, 0.02), (10, 0.001)])
    trainer.add_event_handler(Events.ITERATION_STARTED, lr)
    pruner = PruneHandler(
        model,
        optimizer,
        schedule=find(SCHEDULES, options.get("schedule", "linear")).make(),
        keep_dense=options.get("keep_dense", False),
        generator=torch.Generator().manual_seed(7),
        **options_for(row, model, calibrated=False),
    )
    engine = create_pruning_engine(
        trainer,
        pruner,
        InPlace(batches(LENGTH), trainer),
        epochs=EPOCHS,
        rewind=options.get("rewind", Rewind(to=3)),
        evaluator=create_supervised_evaluator(model, {"accuracy": Accuracy()}),
        data=batches(2, seed=5),
        fine_tune=options.get("fine_tune", EPOCHS),
    )
    return engine, engine.to_save(model=model, optimizer=optimizer, lr=lr)


def moments(engine):
    """Where checkpoints are written and runs are killed: (engine, event)."""
    return {
        "iteration": (engine.trainer, Events.ITERATION_COMPLETED),
        "epoch": (engine.trainer, Events.EPOCH_COMPLETED),
        "masks_updated": (engine.trainer, PruneEvents.MASKS_UPDATED),
        "round_started": (engine, PruningEvents.ROUND_STARTED),
        "trained": (engine, PruningEvents.TRAINED),
        "pruned": (engine, PruningEvents.PRUNED),
        "rewound": (engine, PruningEvents.REWOUND),
        "round": (engine, Events.EPOCH_COMPLETED),
    }


def run(options):
    engine, objects = build(options)
    folder = Path(options["folder"])
    written = len(list(folder.glob("*.pt"))) if folder.exists() else 0
    numbers = iter(range(written, 10**6))
    saver = DiskSaver(folder, require_empty=False)
    checkpoint = Checkpoint(objects, saver, n_saved=None, global_step_transform=lambda *_: next(numbers))
    where, event = moments(engine)[options.get("checkpoint", "iteration")]
    where.add_event_handler(event, checkpoint)
    dies_at, count = options.get("dies", ("never", 0)), [0]
    if dies_at[0] in moments(engine) and options.get("die"):
        where, event = moments(engine)[dies_at[0]]

        @where.on(event)
        def die():
            count[0] += 1
            if count[0] == dies_at[1]:
                os.kill(os.getpid(), signal.SIGKILL)

    if options.get("resume"):
        newest = max(folder.glob("*.pt"), key=lambda path: int(path.stem.split("_")[-1]), default=None)
        if newest is not None:
            Checkpoint.load_objects(objects, torch.load(newest, weights_only=True))
    engine.run(max_epochs=ROUNDS)
    result = {name: thing.state_dict() for name, thing in objects.items()}
    torch.save(result, folder / options["result"])
