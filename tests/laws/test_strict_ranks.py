"""``strict=True`` where pruned weights of one rank are not 0: every rank raises, and none waits for another."""

import re

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ignite_prune import PrunedWeightsAlive, PruneHandler
from ignite_prune._utils.shard import local
from tests.models import train_step
from tests.ranks import on_two_ranks

WHEN = {  # the event at which one rank writes, or the call that tells in a loop of one's own
    "before a step": Events.ITERATION_STARTED(once=2),
    "after a step": Events.ITERATION_COMPLETED(once=2),
    "at an epoch's end": Events.EPOCH_COMPLETED(once=1),
    "an update": lambda pruner: pruner.step(0.6),
    "the end": lambda pruner: pruner.finalize(),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def revive(model, few):
    """Write to pruned weights of this rank: to all, or to one of which no step tells."""
    weight = local(model[0].weight)
    weight = weight.data if few else weight  # one write is counted, the other is not
    with torch.no_grad():
        dead = (weight == 0).nonzero()
        weight[tuple(dead[-1:].T if few else dead.T)] = 1.0


def written_on_one(rank, when, kind):
    model = net()
    model = fully_shard(model) if kind == "sharded" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = PruneHandler(model, optimizer, strict=True)
    pruner.step(0.5)
    trained = DistributedDataParallel(model) if kind == "ddp" else model
    data = [(torch.randn(8, 16), torch.randint(0, 4, (8,))) for _ in range(4)]
    trainer, at = Engine(lambda engine, batch: train_step(trained, optimizer, batch)), WHEN[when]
    write = lambda: revive(model, few=when == "at an epoch's end") if rank else None  # noqa: E731
    with pytest.raises(PrunedWeightsAlive) as told:
        if callable(at) and not isinstance(at, type(Events.STARTED(once=1))):
            train_step(trained, optimizer, data[0])
            write()
            at(pruner)
        else:
            trainer.add_event_handler(at, write)
            pruner.attach(trainer)
            trainer.run(data, max_epochs=1)
    idist.barrier()
    return str(told.value), trainer.state.iteration


@pytest.mark.parametrize(
    ("when", "kind"),
    [(when, "ddp") for when in WHEN] + [("after a step", "sharded"), ("an update", "sharded"), ("the end", "sharded")],
)
def test_every_rank_raises(when, kind):
    (theirs, iteration), (own, own_iteration) = on_two_ranks(written_on_one, when, kind)
    assert iteration == own_iteration
    assert own.startswith("Pruned weights are not 0 in 0.weight (")
    assert re.search(
        r"on another rank.*: rank 1 raised PrunedWeightsAlive: Pruned weights are not 0 in 0.weight", theirs
    )


def saved_by_one(rank):
    """A state is saved by rank 0 alone, as loops of one's own do: nothing is waited for."""
    model = net()
    pruner = PruneHandler(model, strict=True)
    pruner.step(0.5)
    if rank == 0:
        pruner.state_dict()
        revive(model, few=False)
        with pytest.raises(PrunedWeightsAlive, match="0.weight"):
            pruner.state_dict()
    return True


def test_a_state_is_saved_without_a_meeting():
    assert on_two_ranks(saved_by_one) == (True, True)
