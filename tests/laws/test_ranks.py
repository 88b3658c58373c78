"""Law 8: every rank agrees, whatever data each saw."""

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ignite_prune import PruneHandler, schedule
from ignite_prune.handlers import SET
from tests.catalogue import SALIENCIES, net_for, options_for
from tests.models import batches, small_net
from tests.ranks import on_two_ranks


def scenario(rank, row_name):
    if row_name == "nan_on_one_rank":
        model = small_net()
        pruner = PruneHandler(model, saliency=lambda n, p: p.abs() / (0.0 if rank and n == "5.weight" else 1.0))
        try:
            pruner.step(0.5)
        except ValueError as error:
            return str(error), pruner.sparsity
        return "no error", pruner.sparsity
    if row_name == "type_error_on_one_rank":
        pruner = PruneHandler(small_net(), generator=None)
        if rank:
            pruner.param_groups[0]["allocation"] = None  # breaks on this rank alone
        try:
            pruner.step(0.5)
        except Exception as error:
            return type(error).__name__, str(error), pruner.sparsity
        return "no error", pruner.sparsity
    model = small_net()
    if row_name == "drifted":
        with torch.no_grad():
            model[5].weight.add_(rank * torch.randn_like(model[5].weight))
        pruner = PruneHandler(model)
        pruner.step(0.5)
        return {n: m.tolist() for n, m in pruner.masks.items()}
    row = next(row for row in SALIENCIES if row.name == row_name)
    model = net_for(row)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05, momentum=0.9)
    trainer = create_supervised_trainer(parallel, optimizer, nn.functional.cross_entropy)
    options = options_for(row, model, calibrated=False)
    if row_name == "callable":
        options["saliency"] = local_gradient
    pruner = PruneHandler(parallel, optimizer, schedule=schedule.Linear(0.75, begin=0, end=8), **options)
    pruner.attach(trainer, Events.ITERATION_COMPLETED)
    if row_name == "given":
        pruner.param_groups[0]["saliency"].scores.update(
            {n: s * torch.rand_like(s) for n, s in row.make(model).scores.items()}
        )
    trainer.run(batches(5, seed=rank), max_epochs=2)
    for name, p in pruner.masks.parameters.items():
        assert not p.detach()[~pruner.masks[name]].any()
    return {n: m.tolist() for n, m in pruner.masks.items()}, pruner.sparsity


def local_gradient(name, parameter):
    """A data-dependent score that differs on every rank: what this rank alone saw."""
    return torch.rand_like(parameter) * parameter.abs()


@pytest.mark.parametrize("row", SALIENCIES, ids=str)
def test_masks_are_equal_bit_for_bit(row):
    first, second = on_two_ranks(scenario, row.name)
    # Units are of different sizes: their sparsity is not that of the entries.
    assert first == second and first[1] == pytest.approx(0.75, abs=0.3 if row.notes.get("units") else 1e-3)


def test_weights_that_drifted_apart():
    first, second = on_two_ranks(scenario, "drifted")
    assert first == second


def test_a_failure_on_one_rank_is_raised_on_all():
    first, second = on_two_ranks(scenario, "nan_on_one_rank")
    assert first == second and "saliency of parameter '5.weight'" in first[0] and first[1] == 0
    (first, text, sparsity), second = on_two_ranks(scenario, "type_error_on_one_rank")
    assert first == "ValueError" and "refused on another rank" in text and sparsity == 0
    assert second[0] == "AttributeError" and second[-1] == 0


class Stage(nn.Module):
    """A pipeline stage: each rank has layers of its own."""

    def __init__(self, rank):
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.own = nn.Linear(8, 4 + rank)


def on_ranks_of_other_layers(rank, name):
    model = Stage(rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = []
    if name == "set":
        calls = [lambda: SET(model, optimizer, sparsity=0.5)]
    else:
        pruner = PruneHandler(model, optimizer)
        calls = [lambda: pruner.attach(Engine(lambda engine, batch: None)), lambda: pruner.step(0.5)]
    before = [p.detach().clone() for p in model.parameters()]
    for call in calls:
        with pytest.raises(ValueError, match="Every rank should prune the same parameters") as error:
            call()
        told.append(str(error.value))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    shared = PruneHandler(model, optimizer, exclude="own.*")  # what the error says to do
    shared.attach(Engine(lambda engine, batch: None))
    assert shared.step(0.5) == 0.5
    shared.detach()
    return told


@pytest.mark.parametrize("name", ["pruner", "set"])
def test_ranks_of_other_layers_are_refused_on_each(name):
    first, second = on_two_ranks(on_ranks_of_other_layers, name)
    told = "rank 1 has 'own.weight' of shape (5, 8) where rank 0 has 'own.weight' of shape (4, 8)"
    assert first == second and all(told in each for each in first)


def on_fully_sharded(rank):
    sharded = FullyShardedDataParallel(small_net(), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
    for model in (sharded, nn.Sequential(sharded)):  # as a whole, and in part
        with pytest.raises(ValueError, match="FullyShardedDataParallel, whose ranks hold pieces of the weights"):
            PruneHandler(model, optimizer)


def test_fully_sharded_models_are_refused_by_name():
    on_two_ranks(on_fully_sharded)
