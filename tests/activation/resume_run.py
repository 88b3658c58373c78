"""One training run with sparse activations, for a process of its own that may be killed."""

import os
import signal
from pathlib import Path

import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn

from ignite_prune.handlers import ActivationSparsity
from tests.activation.catalogue import ROWS
from tests.laws.resume_run import CHECKPOINTS, _Rest


def batches(row):
    dice = torch.Generator().manual_seed(1)
    return [(torch.randn(row.input(), generator=dice), torch.randint(5, (6,), generator=dice)) for _ in range(5)]


def run(options):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = Path(options["folder"])
    row = next(row for row in ROWS if row.name == options["row"])
    model = row.net()
    handler = ActivationSparsity(
        model, {"0": row.make()}, boost_decay=0.85, after_activation=options.get("after", False)
    )
    optimizer = torch.optim.Adam([*model.parameters(), *handler.parameters()], lr=0.01)

    def loss_fn(y, target):
        return nn.functional.cross_entropy(y, target) + handler.penalty()

    trainer = create_supervised_trainer(model, optimizer, loss_fn)
    objects = {"model": model, "optimizer": optimizer, "handler": handler, "trainer": trainer}
    saver = DiskSaver(folder, require_empty=False)
    checkpoint = Checkpoint(objects, saver, n_saved=None, global_step_transform=lambda e, _: e.state.iteration)
    if options["checkpoint_first"]:
        trainer.add_event_handler(CHECKPOINTS[options["checkpoint"]], checkpoint)
    handler.attach(trainer, Events.EPOCH_COMPLETED)
    if not options["checkpoint_first"]:
        trainer.add_event_handler(CHECKPOINTS[options["checkpoint"]], checkpoint)

    @trainer.on(Events.ITERATION_COMPLETED)
    def die():
        if trainer.state.iteration == options.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    data = batches(row)
    if options.get("resume"):
        newest = max(folder.glob("*.pt"), key=lambda path: int(path.stem.split("_")[-1]))
        Checkpoint.load_objects(objects, torch.load(newest, weights_only=True))
        data = _Rest(data, trainer.state.iteration % 5)
    trainer.run(data, max_epochs=4, epoch_length=5)
    result = {name: thing.state_dict() for name, thing in objects.items()}
    published = [repr(value) for value in trainer.state.activation.values()]  # NaN equals NaN
    torch.save({**result, "grads": [p.grad for p in model.parameters()], "told": published}, folder / options["result"])
