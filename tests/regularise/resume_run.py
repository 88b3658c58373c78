"""One run under a regulariser, for a process of its own that may be killed; see tests/laws/resume_run.py."""

import os
import signal
from pathlib import Path

import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn

from ignite_prune import PruneHandler, pattern, schedule
from ignite_prune.handlers import GroupLasso, LearntSparsity, ProgressiveMasks, Slimming
from ignite_prune.regularise import SoftMovement, SoftThreshold
from tests.laws.resume_run import _Rest
from tests.models import batches, small_net

RISE = schedule.Linear(0.5, begin=0, end=15)
REGULARISERS = {
    "proximal": lambda model: GroupLasso(model, strength=RISE, pattern=pattern.Channel(dim=1)),
    "gradient": lambda model: GroupLasso(model, strength=RISE, pattern=pattern.NofM(2, 4), proximal=False),
    "slimming": lambda model: Slimming(model, strength=RISE, proximal=True),
    "soft_threshold": lambda model: LearntSparsity(
        model, gate=SoftThreshold(start_at=-3.0), strength=RISE, shared=True
    ),
    "soft_movement": lambda model: LearntSparsity(
        model,
        gate=SoftMovement(0.49),
        strength=RISE,
        shared=True,
        learner=lambda p: torch.optim.SGD(p, lr=50.0, momentum=0.5),
    ),
}
EVENTS = {"iteration": Events.ITERATION_COMPLETED, "epoch": Events.EPOCH_COMPLETED}


def run(options):
    torch.set_num_threads(1)
    folder = Path(options["folder"])
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    objects = {"model": model, "optimizer": optimizer, "trainer": trainer}
    if options["regulariser"] == "progressive":
        rise = schedule.Linear(0.75, begin=0, end=12)
        pruner = objects["pruner"] = PruneHandler(model, optimizer, schedule=rise, pattern=pattern.Block((4, 1)))
        regulariser, published = ProgressiveMasks(pruner, steps=3), "sparsity"
    else:
        regulariser = REGULARISERS[options["regulariser"]](model)
        published = regulariser.NAME
    objects["regulariser"] = regulariser
    if options.get("pruned"):
        objects["pruner"] = PruneHandler(model, optimizer, schedule=schedule.Linear(0.5, begin=0, end=12), shared=True)
        objects["pruner"].attach(trainer, Events.ITERATION_COMPLETED(every=3))
    saver = DiskSaver(folder, require_empty=False)
    checkpoint = Checkpoint(objects, saver, n_saved=None, global_step_transform=lambda e, _: e.state.iteration)
    event = EVENTS[options["event"]]
    if options.get("checkpoint_first"):
        trainer.add_event_handler(event, checkpoint)
    regulariser.attach(trainer, event)
    if not options.get("checkpoint_first"):
        trainer.add_event_handler(event, checkpoint)

    @trainer.on(Events.ITERATION_COMPLETED)
    def die():
        if trainer.state.iteration == options.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    data = batches(5)
    if options.get("resume"):
        newest = max(folder.glob("*.pt"), key=lambda path: int(path.stem.split("_")[-1]))
        Checkpoint.load_objects(objects, newest)
        data = _Rest(data, trainer.state.iteration % 5)
    trainer.run(data, max_epochs=3, epoch_length=5)
    result = {name: thing.state_dict() for name, thing in objects.items()}
    result["published"] = getattr(trainer.state, published)
    torch.save(result, folder / options["result"])
