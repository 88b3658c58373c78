"""What a resumed run has in common with one that was never killed: the table of docs/howto/resume.md."""

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from torch.utils.data import DataLoader, TensorDataset

from ignite_prune import PruneHandler, saliency, schedule

SEED = 5
DATA = TensorDataset(
    torch.randn(24, 6, generator=torch.Generator().manual_seed(1)),
    torch.randint(3, (24,), generator=torch.Generator().manual_seed(2)),
)


def run(*, deterministic, dropout, shuffle, event, folder=None, stop=None, load=None):
    """A run of five epochs of six batches; ``stop`` ends it after that many iterations, ``load`` continues a file."""
    torch.manual_seed(SEED)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Dropout(dropout), torch.nn.Linear(12, 3))
    optimizer = torch.optim.Adam(model.parameters())
    trainer = create_supervised_trainer(
        model, optimizer, torch.nn.functional.cross_entropy, deterministic=deterministic
    )
    pruner = PruneHandler(model, optimizer, saliency=saliency.Taylor(), schedule=schedule.Linear(0.7, begin=1, end=25))
    pruner.attach(trainer, Events.ITERATION_COMPLETED(every=4))
    objects = {"model": model, "optimizer": optimizer, "trainer": trainer, "pruner": pruner}
    checkpoint = Checkpoint(objects, DiskSaver(folder, require_empty=False), n_saved=1) if folder else None
    if stop is not None:
        trainer.add_event_handler(event, checkpoint)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop), trainer.terminate)
    if load is not None:
        Checkpoint.load_objects(objects, torch.load(load, weights_only=False))
    torch.manual_seed(SEED if deterministic else SEED + (load is not None))
    trainer.run(DataLoader(DATA, batch_size=4, shuffle=shuffle), max_epochs=5)
    return model.state_dict(), checkpoint


@pytest.mark.parametrize(
    ("deterministic", "dropout", "shuffle", "at", "same"),
    [
        (False, 0.0, False, "epoch", True),
        (False, 0.0, False, "within", False),
        (False, 0.3, False, "epoch", False),
        (False, 0.0, True, "epoch", False),
        (True, 0.3, False, "epoch", True),
        (True, 0.3, False, "within", True),
        (True, 0.3, True, "epoch", True),
        (True, 0.3, True, "within", False),
    ],
)
def test_the_table_on_resuming(deterministic, dropout, shuffle, at, same, tmp_path):
    event = Events.EPOCH_COMPLETED if at == "epoch" else Events.ITERATION_COMPLETED(every=4)
    way = {"deterministic": deterministic, "dropout": dropout, "shuffle": shuffle, "event": event}
    with torch.random.fork_rng():
        whole, _ = run(**way)
        _, checkpoint = run(**way, folder=tmp_path, stop=17)
        resumed, _ = run(**way, load=checkpoint.last_checkpoint)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole) == same
