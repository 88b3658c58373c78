"""Snapshots and what is rewound, on every optimizer; laws 4, 7, 9."""

import copy
import io

import pytest
import torch
from ignite.handlers import PiecewiseLinear
from torch import nn

from ignite_prune import PruneHandler, Rewind
from ignite_prune._utils.bits import masked_copy_
from ignite_prune._utils.pairs import from_pairs
from ignite_prune.activation import KWinners
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.handlers.lottery.snapshot import Snapshot
from tests.catalogue import OPTIMIZERS
from tests.models import assert_same_bits, assert_zero, batches, small_net, train_step

WHOLE = [row for row in OPTIMIZERS if not row.notes]


def state_of(*things):
    held = io.BytesIO()  # as a checkpoint would hold it
    torch.save([thing.state_dict() for thing in things], held)
    held.seek(0)
    return torch.load(held, weights_only=True)


@pytest.mark.parametrize("row", WHOLE, ids=str)
@pytest.mark.parametrize("moment", [0, 2])
def test_everything_is_as_it_was_and_trains_on_alike(row, moment):
    model = small_net()
    optimizer = row.make(model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    data = batches(5)

    def train(start, end):
        for batch in data[start:end]:
            train_step(model, optimizer, batch)
            scheduler.step()

    train(0, moment)
    snapshot = Snapshot(Rewind(to=moment), model, optimizer, [scheduler])
    snapshot.take()
    before = state_of(model, optimizer, scheduler)
    train(moment, 5)
    end = state_of(model, optimizer, scheduler)
    for _ in range(2):  # what is trained after rewinding does not reach the snapshot
        snapshot.restore()
        assert_same_bits(before, state_of(model, optimizer, scheduler))
        train(moment, 5)
        assert_same_bits(end, state_of(model, optimizer, scheduler))


@pytest.mark.parametrize("row", WHOLE, ids=str)
def test_pruned_stays_zero_in_weights_and_slots(row):
    model = small_net()
    optimizer = row.make(model.parameters())
    for batch in batches(2):
        train_step(model, optimizer, batch)
    snapshot = Snapshot(Rewind(to=2), model, optimizer)
    snapshot.take()
    then = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.7)
    for batch in batches(2):
        train_step(model, optimizer, batch)
    snapshot.restore(pruner.masks)
    assert_zero(pruner, optimizer)
    for name, tensor in model.state_dict().items():
        kept = pruner.masks[name] if name in pruner.masks else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(tensor[kept], then[name][kept])
    for batch in batches(2):
        train_step(model, optimizer, batch)
        assert_zero(pruner, optimizer)


@pytest.mark.parametrize(
    ("rewind", "same"),
    [
        (Rewind(weights=False), {"slots", "lr", "position"}),
        (Rewind(optimizer=False), {"weights", "statistics", "lr", "position"}),
        (Rewind(schedule=False), {"weights", "statistics", "slots"}),
        (Rewind(weights=False, optimizer=False), {"lr", "position"}),
        (Rewind(), {"weights", "statistics", "slots", "lr", "position"}),
    ],
)
def test_what_is_rewound_and_what_is_not(rewind, same):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def now():
        return {
            "weights": model[0].weight.detach().clone(),
            "statistics": model[1].running_var.clone(),
            "slots": [slot["momentum_buffer"].clone() for slot in optimizer.state.values()],
            "lr": optimizer.param_groups[0]["lr"],
            "position": scheduler.last_epoch,
        }

    snapshot = Snapshot(rewind, model, optimizer, [scheduler])
    snapshot.take()
    before = now()
    train_step(model, optimizer, batches(1)[0])
    scheduler.step()
    after = now()
    snapshot.restore()
    for what, value in now().items():
        assert_same_bits(value, before[what] if what in same else after[what], what)


def test_buffers_outside_the_state_dict_come_back_too():
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2))
    model.register_buffer("seen", torch.zeros(2), persistent=False)
    snapshot = Snapshot(Rewind(), model)
    snapshot.take()
    model.seen.add_(1)
    snapshot.restore()
    assert model.seen.tolist() == [0, 0]


def test_sparsifiers_in_the_model_come_back_with_their_amounts():
    """Their duty cycles have no size before the first batch; their amount is a buffer and a float."""
    layer = KWinners(density=0.5)
    model = nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2))
    snapshot, later = Snapshot(Rewind(), model), Snapshot(Rewind(), model)
    snapshot.take()
    before = state_of(model)
    model(torch.randn(3, 4))
    layer.sparsity = 0.75
    later.take()
    after = state_of(model)
    snapshot.load_state_dict(snapshot.state_dict())
    snapshot.restore()
    assert_same_bits(before, state_of(model))
    assert layer.sparsity == 0.5 and layer.duty.numel() == 0
    later.load_state_dict(later.state_dict())  # in a new process the model has not seen a batch
    later.restore()
    assert_same_bits(after, state_of(model))
    assert layer.sparsity == 0.75
    model(torch.randn(3, 4))


def test_tied_weights_and_wrapped_models():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    snapshot = Snapshot(Rewind(), torch.compile(model))
    snapshot.take()
    assert list(dict(snapshot.state_dict()["held"])["tensors"]) == ["0.weight", "0.bias", "1.bias"]
    before = model[1].weight.detach().clone()
    nn.init.ones_(model[0].weight)
    snapshot.restore()
    assert torch.equal(model[1].weight, before)


def test_a_slot_of_one_number_is_restored():
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.Adam([weight])
    snapshot = Snapshot(Rewind(), nn.ParameterList([weight]), optimizer)
    for _ in range(2):
        weight.square().backward()
        optimizer.step()
    snapshot.take()
    optimizer.step()
    snapshot.restore()
    assert optimizer.state[weight]["step"] == 2


# Law 7


def test_the_state_is_plain_and_restores_in_a_new_process():
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    train_step(model, optimizer, batches(1)[0])
    scheduler.step()
    snapshot = Snapshot(Rewind(to=1), model, optimizer, [scheduler])
    snapshot.take()
    (state,) = state_of(snapshot)
    before = state_of(model, optimizer, scheduler)
    other = small_net(seed=3)
    other_optimizer = torch.optim.AdamW(other.parameters(), amsgrad=True)
    other_scheduler = torch.optim.lr_scheduler.OneCycleLR(other_optimizer, 0.1, total_steps=9)
    fresh = Snapshot(Rewind(to=1), other, other_optimizer, [other_scheduler])
    fresh.load_state_dict(state)
    fresh.restore()
    assert_same_bits(before, state_of(other, other_optimizer, other_scheduler))


def refused(error, match, change, rewind=Rewind()):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshot = Snapshot(rewind, model, optimizer)
    snapshot.take()
    fresh = Snapshot(rewind, model, optimizer)
    with pytest.raises(error, match=match):
        fresh.load_state_dict(change(snapshot.state_dict()))
    assert not fresh.taken


def test_states_that_do_not_fit_are_refused():
    refused(TypeError, "mapping", lambda state: None)
    refused(TypeError, "version", lambda state: {})
    refused(ValueError, "version", lambda state: {**state, "version": 3})
    refused(ValueError, "rewinds by", lambda state: {**state, "rewind": {**state["rewind"], "to": 3}})
    refused(TypeError, "mapping", lambda state: {**state, "held": [1]})
    refused(ValueError, "tensors", lambda state: {**state, "held": {}})

    def without(state, **changed):
        return {**state, "held": {**dict(state["held"]), **changed}}

    tensors = dict(small_net().state_dict())
    refused(ValueError, "0.weight", lambda s: without(s, tensors={**tensors, "0.weight": torch.ones(1)}))
    refused(ValueError, "groups", lambda s: without(s, settings=[[]]))
    refused(ValueError, "optimizers", lambda s: without(s, slots=[]))
    refused(ValueError, "schedulers", lambda s: without(s, schedulers=[{}]))


# Law 9


def test_bad_arguments():
    for error, arguments in (
        (TypeError, {"to": "start"}),
        (TypeError, {"to": 1.5}),
        (TypeError, {"to": True}),
        (ValueError, {"to": -1}),
        (TypeError, {"weights": 1}),
        (TypeError, {"schedule": None}),
        (ValueError, {"weights": False, "optimizer": False, "schedule": False}),
    ):
        with pytest.raises(error):
            Rewind(**arguments)
    with pytest.raises(TypeError, match="rewind"):
        Snapshot("init", small_net())
    with pytest.raises(TypeError, match="model"):
        Snapshot(Rewind(), 3)


def test_never_snapshotted_and_a_model_that_changed():
    model = small_net()
    snapshot = Snapshot(Rewind(to=500), model)
    with pytest.raises(ValueError, match="500 was never snapshotted"):
        snapshot.restore()
    snapshot.take()
    model[7] = nn.Linear(16, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="7."):
        snapshot.restore()
    assert_same_bits(before, dict(model.state_dict()))
    snapshot.forget()
    assert not snapshot.taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex128])
def test_masked_copies(dtype):
    source = torch.tensor([[1.5, -2.0, 3.0], [4.0, -5.0, 6.0]]).to(dtype)
    source[0, 1] = float("nan")
    mask = torch.tensor([[True, False, True], [False, False, True]])
    expected = torch.tensor([[1.5, 0.0, 3.0], [0.0, 0.0, 6.0]]).to(dtype)
    for target in (torch.ones(2, 3, dtype=dtype), torch.ones(3, 2, dtype=dtype).t()):
        assert_same_bits(masked_copy_(target, source, mask).contiguous(), expected)
    assert torch.equal(masked_copy_(torch.ones(2, 3, dtype=dtype), expected, None), expected)


def test_masks_of_some_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    snapshot = Snapshot(Rewind(), model)
    snapshot.take()
    store = MaskStore({"1.weight": model[1].weight}, {"1.weight": torch.tensor([[True, False], [False, False]])})
    first = model[0].weight.detach().clone()
    snapshot.restore(store)
    assert torch.equal(model[0].weight, first) and int(model[1].weight.count_nonzero()) == 1


HOSTILE = {  # a place in a snapshot's state, what stands there, and what is told
    "flag": (("settings", 0, 0, "foreach"), torch.zeros(2), "settings do not fit a Adam: RuntimeError"),
    "number": (("settings", 0, 0, "betas"), (-1.0, 0.9), "settings do not fit a Adam: ZeroDivisionError"),
    "nothing": (("settings", 0, 0, "eps"), None, "settings do not fit a Adam: TypeError"),
    "group": (("schedulers", 0, "param_group_index"), [None], "scheduler does not fit a PiecewiseLinear: TypeError"),
    "values": (("schedulers", 0, "values"), [], "scheduler does not fit a PiecewiseLinear: IndexError"),
    "period": (("schedulers", 1, "step_size"), 0, "scheduler does not fit a StepLR: ZeroDivisionError"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_states_that_fail_later_are_refused_whole(name):
    path, value, told = HOSTILE[name]
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedulers = [PiecewiseLinear(optimizer, "lr", [(0, 0.1), (9, 0.0)]), torch.optim.lr_scheduler.StepLR(optimizer, 2)]
    snapshot = Snapshot(Rewind(), model, optimizer, schedulers)
    snapshot.take()
    state = copy.deepcopy(snapshot.state_dict())
    place = dict(from_pairs(state["held"]))
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    before = copy.deepcopy([optimizer.state_dict(), *(each.state_dict() for each in schedulers)])
    snapshot.forget()
    with pytest.raises(ValueError, match=told):
        snapshot.load_state_dict(state)
    assert not snapshot.taken
    assert_same_bits([optimizer.state_dict(), *(each.state_dict() for each in schedulers)], before)


def test_an_optimizer_that_cannot_be_tried_is_still_loaded():
    class Own(torch.optim.SGD):
        def step(self, closure=None):
            return self.mine()

    model = small_net()
    optimizer = Own(model.parameters(), lr=0.1)
    optimizer.mine = lambda: None  # which no copy has
    snapshot = Snapshot(Rewind(), model, optimizer)
    snapshot.take()
    snapshot.load_state_dict(snapshot.state_dict())
    lbfgs = torch.optim.LBFGS(model.parameters())
    snapshot = Snapshot(Rewind(), model, lbfgs)
    snapshot.take()
    snapshot.load_state_dict(snapshot.state_dict())
