"""A dynamically sparse training run, in this process or in one of its own that may be killed."""

import os
import signal
from pathlib import Path

import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn

from ignite_prune import PruneEvents
from ignite_prune.handlers import SET, SRSTE, AlternatingSparse, RigL, SparseMomentum, SRigL, TopKAST
from tests.laws.resume_run import _Rest
from tests.models import batches, small_net

EVENTS = {
    "iteration_completed": Events.ITERATION_COMPLETED,
    "epoch_completed": Events.EPOCH_COMPLETED,
    "masks_updated": PruneEvents.MASKS_UPDATED,
}
MOVING = {"sparsity": 0.8, "every": 3, "end": 14, "drop_fraction": 0.4}
HANDLERS = {
    "set": lambda m, o: SET(m, o, generator=torch.Generator().manual_seed(3), **MOVING),
    "rigl": lambda m, o: RigL(m, o, generator=torch.Generator().manual_seed(3), **MOVING),
    "srigl": lambda m, o: SRigL(m, o, generator=torch.Generator().manual_seed(3), **MOVING),
    "sparse_momentum": lambda m, o: SparseMomentum(m, o, generator=torch.Generator().manual_seed(3), **MOVING),
    "top_kast": lambda m, o: TopKAST(m, o, sparsity=0.8, every=3, strength=0.05),
    "sr_ste": lambda m, o: SRSTE(m, o, strength=0.05),
    "alternating": lambda m, o: AlternatingSparse(
        m, o, sparsity=0.8, begin=1, phase=1, end=4, reset_momentum=True
    ),
}  # fmt: skip


def build(options):
    torch.set_num_threads(1)
    model = small_net(options.get("seed", 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True, weight_decay=0.01)
    steps = options.get("accumulate", 1)
    trainer = create_supervised_trainer(
        model, optimizer, nn.functional.cross_entropy, gradient_accumulation_steps=steps
    )
    pruner = HANDLERS[options["handler"]](model, optimizer)
    return {"model": model, "optimizer": optimizer, "trainer": trainer, "pruner": pruner}


def run(options):
    folder = Path(options["folder"])
    objects = build(options)
    trainer, pruner = objects["trainer"], objects["pruner"]
    saver = DiskSaver(folder, require_empty=False)
    checkpoint = Checkpoint(objects, saver, n_saved=None, global_step_transform=lambda e, _: e.state.iteration)
    event = EVENTS[options.get("checkpoint", "iteration_completed")]
    early = options.get("first") and event != PruneEvents.MASKS_UPDATED
    if early:
        trainer.add_event_handler(event, checkpoint)
    pruner.attach(trainer)
    if not early:
        trainer.add_event_handler(event, checkpoint)

    @trainer.on(Events.ITERATION_COMPLETED)
    def die():
        if trainer.state.iteration == options.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    data = batches(5)
    if "from" in options or options.get("resume"):
        files = {int(path.stem.split("_")[-1]): path for path in folder.glob("*.pt")}
        at = options.get("from", max(files))
        order = sorted(objects, reverse=options.get("reverse", False))  # model before pruner, or after
        Checkpoint.load_objects({name: objects[name] for name in order}, files[at])
        data = _Rest(data, at % 5)
    trainer.run(data, max_epochs=4, epoch_length=5)
    result = {name: thing.state_dict() for name, thing in objects.items()}
    result["published"] = dict(trainer.state.sparsity)
    torch.save(result, folder / options["result"])
