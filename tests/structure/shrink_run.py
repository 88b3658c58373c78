"""One training run that is sliced on its way, for a process of its own that may be killed."""

import os
import signal
from pathlib import Path

import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from torch.nn.functional import cross_entropy

from ignite_prune import PruneHandler, ShrinkHandler, allocation, saliency, schedule, trace
from tests.laws.resume_run import CHECKPOINTS, _Rest
from tests.structure.zoo import Residual, image


def batches():
    dice = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 3, 8, 8, generator=dice, dtype=torch.float64), torch.randint(5, (4,), generator=dice))
        for _ in range(5)
    ]


def run(options):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = Path(options["folder"])
    model = Residual().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)
    pruner = PruneHandler(
        model,
        optimizer,
        structure=trace(model, image()),
        saliency=getattr(saliency, options["saliency"])(),
        schedule=schedule.Linear(0.75, begin=0, end=4),
        allocation=allocation.Uniform(),
    )
    shrinker = ShrinkHandler(pruner, image())
    objects = shrinker.to_save(model=model, optimizer=optimizer, pruner=pruner, trainer=trainer)
    saver = DiskSaver(folder, require_empty=False)
    checkpoint = Checkpoint(objects, saver, n_saved=None, global_step_transform=lambda e, _: e.state.iteration)
    if options["checkpoint_first"]:
        trainer.add_event_handler(CHECKPOINTS[options["checkpoint"]], checkpoint)
    pruner.attach(trainer, Events.EPOCH_COMPLETED)
    shrinker.attach(trainer, Events.EPOCH_COMPLETED(every=2))
    if not options["checkpoint_first"]:
        trainer.add_event_handler(CHECKPOINTS[options["checkpoint"]], checkpoint)

    @trainer.on(Events.ITERATION_COMPLETED)
    def die():
        if trainer.state.iteration == options.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    data = batches()
    if options.get("resume"):
        newest = max(folder.glob("*.pt"), key=lambda path: int(path.stem.split("_")[-1]))
        Checkpoint.load_objects(objects, torch.load(newest, weights_only=True))
        data = _Rest(data, trainer.state.iteration % 5)
    trainer.run(data, max_epochs=5, epoch_length=5)
    result = {name: thing.state_dict() for name, thing in objects.items()}
    torch.save({**result, "grads": [p.grad for p in model.parameters()]}, folder / options["result"])
