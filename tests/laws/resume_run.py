"""One training run, for a process of its own that may be killed.

With ``"resume"`` it loads the newest checkpoint in its folder first. At the end it writes every bit there is.
"""

import os
import signal
from pathlib import Path

import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn

from ignite_prune import PruneEvents, PruneHandler, trace
from tests.catalogue import COUPLED, EVENTS, OPTIMIZERS, PATTERNS, REPAIRS, SALIENCIES, SCHEDULES, net_for, options_for
from tests.models import batches

CHECKPOINTS = {
    "epoch_completed": Events.EPOCH_COMPLETED,
    "epoch_started": Events.EPOCH_STARTED,
    "iteration_completed": Events.ITERATION_COMPLETED,
    "every_2": Events.ITERATION_COMPLETED(every=2),
    "masks_updated": PruneEvents.MASKS_UPDATED,
}


def find(rows, name):
    return next(row for row in rows if row.name == name)


def run(options):
    torch.set_num_threads(1)
    torch.manual_seed(options.get("seed", 0))
    folder = Path(options["folder"])
    row = find(SALIENCIES, options.get("saliency", "magnitude"))
    model = net_for(row)
    optimizer = find(OPTIMIZERS, options.get("optimizer", "adam_amsgrad")).make(model.parameters())
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    settings = {"pattern": find(PATTERNS, options.get("pattern", "unstructured")).make()}
    settings |= options_for(row, model, calibrated=False)  # evidence from training
    if "coupled" in options:
        settings |= {"pattern": find(COUPLED, options["coupled"]).make(), "structure": trace(model, batches(1)[0][0])}
    if "repair" in options:
        chosen = find(REPAIRS, options["repair"])
        settings["repair"] = chosen.make()
        if chosen.notes.get("data"):
            settings |= {"data": batches(3, seed=9), "loss_fn": nn.functional.cross_entropy}
    pruner = PruneHandler(
        model,
        optimizer,
        schedule=find(SCHEDULES, options.get("schedule", "polynomial")).make(),
        keep_dense=options.get("keep_dense", False),
        generator=torch.Generator().manual_seed(7),
        **settings,
    )
    objects = {"model": model, "optimizer": optimizer, "trainer": trainer, "pruner": pruner}
    saver = DiskSaver(folder, require_empty=False)
    checkpoint = Checkpoint(objects, saver, n_saved=None, global_step_transform=lambda e, _: e.state.iteration)
    checkpoint_event = CHECKPOINTS[options.get("checkpoint", "every_2")]

    def attach_checkpoint():
        trainer.add_event_handler(checkpoint_event, checkpoint)

    if options.get("checkpoint_first") and options.get("checkpoint") != "masks_updated":
        attach_checkpoint()
    pruner.attach(trainer, find(EVENTS, options.get("event", "iteration_completed")).make())
    if not options.get("checkpoint_first") or options.get("checkpoint") == "masks_updated":
        attach_checkpoint()

    die_at = options.get("die_at")

    @trainer.on(Events.ITERATION_COMPLETED)
    def die():
        if trainer.state.iteration == die_at and not options.get("die_late"):
            os.kill(os.getpid(), signal.SIGKILL)

    @trainer.on(Events.EPOCH_COMPLETED)
    def die_late():
        if die_at is not None and trainer.state.iteration >= die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    data = batches(5)
    if options.get("resume"):
        newest = max(folder.glob("*.pt"), key=lambda path: int(path.stem.split("_")[-1]), default=None)
        if newest is not None:
            Checkpoint.load_objects(objects, newest)
            data = _Rest(data, trainer.state.iteration % 5)
    trainer.run(data, max_epochs=4, epoch_length=5)
    result = {name: thing.state_dict() for name, thing in objects.items()}
    result["grads"] = [p.grad for p in model.parameters()]
    torch.save(result, folder / options["result"])


class _Rest:
    """Batches that start in the middle the first time round: Ignite itself would begin a resumed epoch at its first."""

    def __init__(self, data, start):
        self.data, self.start = data, start

    def __iter__(self):
        start, self.start = self.start, 0
        return iter(self.data[start:])
