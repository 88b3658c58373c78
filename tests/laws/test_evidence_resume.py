"""Law 5 for evidence: what is computed from data, and what each rank gathers from its own."""

import warnings

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, allocation, repair, saliency, schedule
from ignite_prune._utils.distributed import all_gather
from ignite_prune.evidence import ranks
from tests.catalogue import SALIENCIES, find, net_for, options_for
from tests.catalogue.runs import InPlace
from tests.laws.resuming import loaded, saved
from tests.marks import CUT_SHORT
from tests.models import assert_same_bits, batches
from tests.ranks import on_two_ranks

INFORMED = [row for row in SALIENCIES if row.notes.get("informed")]


@pytest.mark.parametrize("row", INFORMED, ids=str)
def test_evidence_from_data_goes_on(row):
    def pruner():
        model = net_for(row)
        return PruneHandler(model, allocation=allocation.Uniform(), **options_for(row, model))

    whole, again = pruner(), pruner()
    whole.step(0.25)
    again.load_state_dict(loaded(saved(whole.state_dict())))
    again.pruning.model.load_state_dict(whole.pruning.model.state_dict())
    for each in (whole, again):
        each.step(0.5)
    assert_same_bits(again.state_dict(), whole.state_dict())


# Ranks


class Training:
    """A run of one rank over its own batches; masks are updated by hand."""

    def __init__(self, row, rank):
        inner = net_for(row)
        model = nn.parallel.DistributedDataParallel(inner)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
        options = {**options_for(row, inner, calibrated=False), "allocation": allocation.Uniform()}
        self.pruner = PruneHandler(model, optimizer, **options)
        self.pruner.attach(self.trainer, Events.COMPLETED)
        self.objects = {"model": inner, "optimizer": optimizer, "trainer": self.trainer, "pruner": self.pruner}
        self.data = InPlace(batches(6, seed=rank), self.trainer)

    def state(self):
        return {name: each.state_dict() for name, each in self.objects.items()}

    def end(self):
        self.trainer.run(self.data, max_epochs=1, epoch_length=6)
        state = self.state()
        self.pruner.step(0.5)
        self.pruner.detach()
        return {**state, "masks": dict(self.pruner.masks)}


def resumed(rank, number):
    whole, again, files = Training(INFORMED[number], rank), Training(INFORMED[number], rank), []
    whole.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: files.append(saved(whole.state())))
    end = whole.end()
    for name, state in loaded(all_gather(files[0])[0]).items():  # the file is rank 0's
        again.objects[name].load_state_dict(state)
    found = again.end()
    for name in ("pruner", "masks", "optimizer"):
        assert_same_bits(found[name], end[name], name)
    return True


@pytest.mark.parametrize("number", range(len(INFORMED)), ids=[row.name for row in INFORMED])
def test_every_rank_goes_on_from_the_file_of_rank_0(number):
    assert on_two_ranks(resumed, number) == (True, True)


def fed(rank, steps=2):
    model = nn.Linear(4, 2)
    pruner = PruneHandler(model, saliency=saliency.Wanda(), shared=True)
    for step in range(steps):
        model(torch.full((3, 4), float(step + 10 * rank)))
    return pruner


def calls_on_one_rank(rank):
    ranks.PATIENCE, before = 0.3, ranks.PATIENCE
    pruner = fed(rank)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            alone = [pruner.state_dict() for _ in range(2)] if rank == 0 else []
        idist.barrier()
        together = pruner.state_dict()
    finally:
        ranks.PATIENCE = before
    told = [str(each.message) for each in told]
    first, second = fed(rank, 0), fed(rank, 0)
    if alone:
        first.load_state_dict(alone[0])
    second.load_state_dict(together)
    return told, as_lists(first), as_lists(second), repr(together["evidence"])


def as_lists(pruner):
    return {name: total.tolist() for name, total in pruner.state_dict()["evidence"][0]["sums"].items()}


def test_a_state_of_one_rank_alone_does_not_wait_for_the_others():
    (told, alone, mine, file), (silent, _, other, same) = on_two_ranks(calls_on_one_rank)
    assert len(told) == 2 and "on rank 0, but not on all 2 ranks" in told[0] and silent == []
    assert alone["weight"][0] == [3.0] * 4  # three samples of 1
    assert mine["weight"][0] == [3.0] * 4 and other["weight"][0] == [3.0] * 4  # rank 0's is what both write first
    assert file == same


def files_of_two(rank):
    return saved(fed(rank).state_dict())


def test_another_number_of_ranks_takes_the_sum():
    file, _ = on_two_ranks(files_of_two)
    pruner = PruneHandler(nn.Linear(4, 2), saliency=saliency.Wanda())
    pruner.load_state_dict(loaded(file))
    sums = pruner.state_dict()["evidence"][0]["sums"]["weight"]
    assert sums.tolist() == [[66.0] * 4, [3 * (1 + 100 + 121.0)] * 4, [12.0] * 4]


@pytest.mark.parametrize("others", [{"2": {}}, {"1": {"sums": {}, "counts": {"weight": 1.0}}}, [1], {"1": 3}])
def test_a_damaged_rank_is_refused(others):
    pruner = fed(0)
    state = pruner.state_dict()
    state["evidence"][0]["others"] = others
    with pytest.raises((TypeError, ValueError), match="evidence"):
        pruner.load_state_dict(state)


DAMAGES = {
    "stale": lambda state: state | {"stale": torch.ones(2)},
    "endless count": lambda state: state | {"counts": dict.fromkeys(state["counts"], float("inf"))},
    "meta": lambda state: state | {"sums": {name: total.to("meta") for name, total in state["sums"].items()}},
    "need": lambda state: state | {"need": "another"},
    "signs": lambda state: state | {"signs": None},
    "forms": lambda state: state | {"forms": {name: [1] for name in state.get("forms", {"?": 0})}},
    "shapes": lambda state: state | {"shapes": 3},
}


def gathering(row):
    """A pruner with the evidence of one training step."""
    model = net_for(row)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(model, optimizer, **options_for(row, model, calibrated=False))
    pruner.attach(trainer, Events.COMPLETED)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, trainer.terminate)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, pruner.detach)
    trainer.run(batches(1))
    return pruner


@CUT_SHORT
@pytest.mark.parametrize(
    "row", [find(SALIENCIES, name) for name in ("wanda", "obd_hutchinson", "synflow", "obs")], ids=str
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_by_name(row, damage):
    pruner = gathering(row)
    state = pruner.state_dict()
    damaged = DAMAGES[damage](state["evidence"][0])
    if damaged.keys() != state["evidence"][0].keys() or (row.name == "synflow" and damage not in ("need", "shapes")):
        return  # of another kind of evidence
    before = pruner.state_dict()
    with pytest.raises((TypeError, ValueError), match="evidence|generator"):
        pruner.load_state_dict({**state, "evidence": [damaged]})
    assert_same_bits(pruner.state_dict(), before)


# Where nothing gets sparser


@pytest.mark.parametrize("formula", [saliency.Magnitude(), saliency.Wanda(), saliency.Taylor()], ids=repr)
def test_a_dense_phase_needs_no_evidence_and_repairs_nothing(formula):
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    pruner = PruneHandler(
        model, saliency=formula, schedule=schedule.DenseSparse(0.5, begin=0, end=6), repair=repair.SparseGPT(block=4),
        data=[(torch.randn(5, 8), torch.randn(5, 4))], loss_fn=nn.functional.mse_loss,
    )  # fmt: skip
    found = [pruner.step(at=1)]
    with torch.no_grad():
        model.weight.add_(1.0)
        pruner.masks.apply_()
    before = model.weight.detach().clone()
    found += [pruner.step(at=2)]
    assert torch.equal(model.weight, before)
    assert [*found, pruner.step(at=3)] == [0.5, 0.0, 0.5]
