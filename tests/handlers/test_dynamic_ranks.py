"""Every rank of dynamic sparse training agrees, on what it grows by too; tests/laws/test_handlers.py has the rest."""

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune.handlers import SET, RigL, SparseMomentum, SRigL
from tests.models import assert_zero, batches, small_net
from tests.ranks import on_two_ranks


def ranks(rank, name):
    model = small_net()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=0.01)
    trainer = create_supervised_trainer(parallel, optimizer, nn.functional.cross_entropy)
    options = {"every": 2, "end": 100, "sparsity": 0.8}
    if name == "set_on_its_own_seed":
        pruner = SET(parallel, optimizer, **options)  # a seed of its own on each rank
    else:
        kind = {"rigl": RigL, "srigl": SRigL, "sparse_momentum": SparseMomentum}[name]
        pruner = kind(parallel, optimizer, generator=torch.Generator().manual_seed(3), **options)
    start = {key: mask.clone() for key, mask in pruner.masks.items()}
    heard = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def hear():  # before the update: what it grows by, which broadcasting the masks would hide
        if name in ("rigl", "srigl"):
            held = dict(pruner.state_dict()["heard"])["gradients"]
            heard.append({key: value.flatten()[::7].tolist() for key, value in held.items()})

    pruner.attach(trainer)
    trainer.run(batches(5, seed=rank), max_epochs=2)  # other data on each rank
    assert_zero(pruner, optimizer)
    moved = any(not torch.equal(start[key], mask) for key, mask in pruner.masks.items())
    weights = [p.detach().double().sum().item() for p in model.parameters()]
    assert not heard or any(heard)
    return moved, weights, heard, {key: mask.tolist() for key, mask in pruner.masks.items()}


@pytest.mark.parametrize("name", ["set_on_its_own_seed", "rigl", "srigl", "sparse_momentum"])
def test_two_ranks_are_equal(name):
    first, second = on_two_ranks(ranks, name)
    assert first[0] and first == second
