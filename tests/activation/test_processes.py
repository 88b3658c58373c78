"""Sparse activations in several processes: killed and resumed, and on two ranks."""

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn

from ignite_prune.activation import KWinners, KWinners2d, Learnt, Lifetime, TopK
from ignite_prune.handlers import ActivationSparsity
from tests.models import batches, small_net
from tests.ranks import on_two_ranks


def on_a_rank(rank):
    model = small_net()
    parallel = nn.parallel.DistributedDataParallel(model)
    handler = ActivationSparsity(parallel, {"5": TopK(Learnt(0.5, target=0.8)), "7": Lifetime(0.5)})
    behind = ActivationSparsity(parallel, {"0": KWinners2d(density=0.2)}, after_activation=True, boost_decay=0.9)
    optimizer = torch.optim.SGD([*parallel.parameters(), *handler.parameters()], lr=0.1)
    trainer = create_supervised_trainer(
        parallel, optimizer, lambda y, t: nn.functional.cross_entropy(y, t) + handler.penalty()
    )
    handler.attach(trainer)
    behind.attach(trainer, name="behind")
    trainer.run(batches(5, seed=rank), max_epochs=2)
    layers = dict(handler.state_dict()["layers"] + behind.state_dict()["layers"])
    uneven = KWinners(1, boost=0)  # ranks with batches and sequences of their own
    uneven((torch.arange(4.0) == rank).float().expand(1 + rank, 2 + rank, 4))
    layers["uneven"] = dict(uneven.state_dict())
    inside = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), KWinners(2), nn.Linear(8, 4))
    wrapped = nn.parallel.DistributedDataParallel(inside)
    for x, target in batches(3, seed=rank):
        nn.functional.cross_entropy(wrapped(x), target).backward()
    layers["inside"] = dict(inside[2].state_dict())
    state = {name: {key: value.tolist() for key, value in held.items()} for name, held in layers.items()}
    return state, repr(trainer.state.activation), repr(trainer.state.behind)


def test_every_rank_has_the_same_duty_cycles():
    first, second = on_two_ranks(on_a_rank)
    assert first == second
    assert first[0]["0"]["seen"] == 2 * 5 * 6 * 2, "the samples of both"
    assert first[0]["inside"]["seen"] == 36 and sum(first[0]["inside"]["duty"]) == pytest.approx(2)
    assert first[0]["uneven"]["duty"] == [0.25, 0.75, 0, 0], "2 and 6 positions"
    assert first[0]["5"]["learnt.logit"] != 0, "it has learnt"
