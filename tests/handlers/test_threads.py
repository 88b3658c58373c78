"""Trainings in several threads: each handler acts on its own optimizers alone."""

import sys
import threading

import pytest
import torch
from ignite.engine import create_supervised_trainer

from ignite_prune import PruneHandler, pattern, schedule
from ignite_prune.handlers import GroupLasso, LearntSparsity
from tests.models import batches, small_net


@pytest.fixture
def _impatient():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def trained(made, model, results):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, torch.nn.functional.cross_entropy)
    handler = made(model, optimizer)
    handler.attach(trainer)
    trainer.run(batches(4), max_epochs=4)
    handler.detach()
    results[id(model)] = torch.cat([p.detach().flatten() for p in model.parameters()])


MADE = {
    "learnt": lambda m, o: LearntSparsity(m, strength=0.01),
    "lasso": lambda m, o: GroupLasso(m, strength=0.1, pattern=pattern.Channel()),
    "pruner": lambda m, o: PruneHandler(m, o, schedule=schedule.Linear(0.8, begin=0, end=3)),
}


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("name", MADE)
def test_two_threads_end_as_one_after_the_other(name):
    alone, together = {}, {}
    first, models = [small_net(seed) for seed in (0, 1)], [small_net(seed) for seed in (0, 1)]
    for model in first:
        trained(MADE[name], model, alone)
    threads = [threading.Thread(target=trained, args=(MADE[name], model, together)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, other in zip(first, models):
        assert torch.equal(alone[id(model)], together[id(other)])


@pytest.mark.usefixtures("_impatient")
def test_attaching_while_another_thread_steps():
    lasso = MADE["lasso"](small_net(), None)
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.grad = torch.ones(2)
    stop, failed = threading.Event(), []

    def step():
        try:
            while not stop.is_set():
                optimizer.step()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    for _ in range(100):
        lasso._hooks.install()
        lasso._hooks.remove()
    stop.set()
    thread.join()
    assert not failed
