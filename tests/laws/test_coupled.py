"""Every law over units that go together: whatever the pattern, saliency, allocation and optimizer."""

import math

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, schedule, shrink, trace
from tests.catalogue import ALLOCATIONS, COUPLED, OPTIMIZERS, SALIENCIES, options_for
from tests.models import assert_zero, batches, small_net, train_step
from tests.ranks import on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
X = batches(1)[0][0]
UNITS = 8 + 16  # channels of the convolution, neurons of the first linear layer
FITTING = [
    pytest.param(row, shape, id=f"{row}-{shape}")
    for row in SALIENCIES
    for shape in COUPLED
    if not row.notes.get("attention")
    and (not row.notes.get("signed") or shape.notes.get("signed"))
    and (shape.name in ("coupled", "coupled_signed") or row.name == "magnitude")
]


def pruner_for(shape, optimizer=None, model=None, **options):
    model = small_net() if model is None else model
    return PruneHandler(model, optimizer, structure=trace(model, X), pattern=shape.make(), **options)


def left(pruner):
    return [kept for _, kept in pruner.units.values()]


@pytest.mark.parametrize(("row", "shape"), FITTING)
def test_counts_are_exact(row, shape):
    model = small_net()
    options = {**options_for(row, model), "pattern": shape.make()}
    pruner = PruneHandler(model, structure=trace(model, X), **options)
    for sparsity in (0.0, 0.1, 0.37, 0.5):
        pruner.step(sparsity)
        units = sum(whole for whole, _ in pruner.units.values())
        if shape.notes.get("exact"):
            assert sum(left(pruner)) == units - round(sparsity * units)
        else:
            assert all(kept % 4 == 0 for kept in left(pruner))
        masks = pruner.structure.masks(pruner.structure.kept(pruner.masks))
        assert all(torch.equal(masks[name], pruner.masks[name]) for name in pruner.masks), "whole units, and no more"


@pytest.mark.parametrize("shape", COUPLED, ids=str)
@pytest.mark.parametrize("row", ALLOCATIONS, ids=str)
def test_every_allocation_nests_and_empties_nothing(row, shape):
    pruner = pruner_for(shape, allocation=row.make())
    before = dict(pruner.masks)
    for sparsity in (0.1, 0.3, 0.31, 0.3, 0.55, 0.9, 0.0):
        pruner.step(sparsity)
        for name, parameter in pruner.masks.parameters.items():
            assert not (pruner.masks[name] & ~before[name]).any(), "an entry came back"
            with torch.no_grad():
                parameter += torch.randn_like(parameter) * pruner.masks[name]
        before = dict(pruner.masks)
        if row.notes.get("totals") and shape.notes.get("exact") and sparsity == 0.55:
            assert sum(left(pruner)) == UNITS - round(0.55 * UNITS)
    assert min(left(pruner)) >= 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", COUPLED, ids=str)
def test_a_score_that_is_not_finite_changes_nothing(shape, bad):
    model = small_net()
    with torch.no_grad():
        model[5].weight[3, 7] = bad
    pruner = pruner_for(shape, model=model)
    with pytest.raises(ValueError, match=r"saliency of parameter '5.weight' has 1 of 2048 values"):
        pruner.step(0.25)
    assert pruner.sparsity == 0 and left(pruner) == [8, 16]


@pytest.mark.parametrize("row", [row for row in OPTIMIZERS if not row.notes.get("sparse")], ids=str)
def test_zero_is_zero_and_slicing_goes_on(row):
    if row.notes.get("matrices"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False))
    else:
        model = small_net()
    optimizer = row.make(model.parameters())
    pruner = pruner_for(COUPLED[0], optimizer, model)
    for index, batch in enumerate(batches() * 2):
        if index in (2, 5):
            pruner.step(0.25 if index == 2 else 0.5)
        train_step(model, optimizer, batch, row.notes.get("closure", False))
        assert_zero(pruner, optimizer)
    pruner.finalize()
    shrink(model, pruner, X, optimizer=optimizer)
    for batch in batches():
        train_step(model, optimizer, batch, row.notes.get("closure", False))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def on_a_rank(rank):
    found = {}
    for shape in COUPLED:
        model = small_net()
        parallel = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05, momentum=0.9)
        trainer = create_supervised_trainer(parallel, optimizer, nn.functional.cross_entropy)
        pruner = pruner_for(shape, optimizer, model, schedule=schedule.Linear(0.75, begin=0, end=4))
        pruner.attach(trainer, Events.ITERATION_COMPLETED)
        trainer.run(batches(5, seed=rank), max_epochs=1)
        found[shape.name] = {name: mask.tolist() for name, mask in pruner.masks.items()}
    return found


def test_every_rank_agrees():
    first, second = on_two_ranks(on_a_rank)
    assert first == second
