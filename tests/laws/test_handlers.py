"""Laws 4, 6, 7, 8 and 12 for handlers beside PruneHandler: zeros, the model itself, plain state, ranks, no leaks."""

import copy
import pickle

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from torch import nn
from torch.optim import optimizer as torch_optimizer

from ignite_prune.handlers import SET
from tests.catalogue import HANDLERS, find
from tests.catalogue.runs import build
from tests.laws.resuming import loaded, saved
from tests.marks import CUT_SHORT
from tests.models import assert_same_bits, assert_zero, batches, small_net, train_step
from tests.ranks import on_two_ranks

pytestmark = [
    CUT_SHORT,
    pytest.mark.filterwarnings("ignore:Pruning left less than 1 %"),
]
PENALTIES = ("group_lasso", "slimming", "learnt_sparsity")
rows = pytest.mark.parametrize("row", HANDLERS, ids=str)


def trained(row, epochs=2, seed=0):
    run = build(seed, handler=row.name, epochs=epochs)
    run.attach()
    run.start()
    return run


def owner_of_masks(row, objects):
    return objects["pruner" if "pruner" in objects else "handler"]


@pytest.mark.parametrize("row", [row for row in HANDLERS if row.notes.get("zero")], ids=str)
def test_zero_is_zero(row):
    run = build(handler=row.name, epochs=4)
    pruner, seen = owner_of_masks(row, run.objects), []
    run.attach()

    @run.trainer.on(Events.ITERATION_COMPLETED)
    def look():
        assert_zero(pruner, run.objects["optimizer"])
        seen.append(pruner.sparsity)

    run.start()
    assert len(seen) == 16 and max(seen) >= 0.25


@pytest.mark.parametrize("row", [row for row in HANDLERS if row.notes.get("masked")], ids=str)
def test_weights_are_zero_where_masks_say_so(row):
    run = build(handler=row.name)
    handler = run.objects["handler"]
    run.attach()

    @run.trainer.on(Events.ITERATION_COMPLETED)
    def look():
        for name, mask in handler.masks.items():
            assert torch.equal(run.objects["model"].get_parameter(name) != 0, mask)

    run.start()
    run.detach()


@rows
def test_state_is_plain_and_refused_whole(row):
    run = trained(row)
    for name in set(run.objects) - {"model", "optimizer", "trainer"}:
        state = run.objects[name].state_dict()
        assert_same_bits(loaded(saved(state)), state)
        other = build(3, handler=row.name).objects[name]
        lacking = set(state) - row.notes.get("optional", set())  # of an earlier version's states
        before = saved(other.state_dict())
        bad = [
            {**state, "version": 99},
            *({k: v for k, v in state.items() if k != lost} for lost in lacking),
            None,
            [],
            {},
        ]
        bad += [{**state, "masks": {**state["masks"], "names": ["a", "b", "c"]}}] if "masks" in state else []
        if isinstance(run.objects[name], SET.__mro__[1]):
            bad += [{**state, "generator": torch.zeros(3)}, {**state, "steps": [1]}, {**state, "budgets": {}}]
            bad += [{**state, "kind": "PruneHandler"}]
            bad += [{**state, "heard": {"first": 1}}] if row.name != "set" else []
        for wrong in bad:
            with pytest.raises((TypeError, ValueError)):
                other.load_state_dict(wrong)
            assert saved(other.state_dict()) == before
    run.detach()


@rows
def test_a_loaded_handler_is_the_saved_one(row):
    run, other = trained(row), build(3, handler=row.name)
    other.load(loaded(saved(run.state())))
    assert_same_bits(other.state(), run.state())
    run.detach()


@pytest.mark.parametrize("row", [row for row in HANDLERS if row.published in PENALTIES], ids=str)
def test_a_strength_that_was_set_comes_back_in_a_handwritten_loop(row):
    data, ends, states = batches(6), [], []
    for half in (False, True):
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        objects = row.objects(model, optimizer)
        if not half:
            objects["handler"].param_groups[0]["strength"] = 0.3
        objects["handler"].attach(Engine(lambda engine, batch: None))
        for index, batch in enumerate(data):
            if index == 3 and not half:
                states = saved([each.state_dict() for each in objects.values()])
            if index == 3 and half:
                for each, state in zip(objects.values(), loaded(states)):
                    each.load_state_dict(state)
            if index >= 3 or not half:
                train_step(model, optimizer, batch)
        assert objects["handler"].param_groups[0]["strength"] == 0.3
        objects["handler"].detach()
        ends.append([each.state_dict() for each in objects.values()])
    assert_same_bits(*ends)


@rows
def test_copies_are_plain_and_train_freely(row):
    run, plain = trained(row), small_net()
    model = run.objects["model"]
    assert type(model) is nn.Sequential and [n for n, _ in model.named_parameters()] == [
        *dict(plain.named_parameters())
    ]
    x = batches(1)[0][0]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_bits(copied.state_dict(), model.state_dict())
        before = copy.deepcopy(model.state_dict())
        twin = plain if row.name != "shrunk" else copy.deepcopy(copied)
        twin.load_state_dict(copied.state_dict())
        assert_same_bits(copied.eval()(x), twin.eval()(x))
        for each in (copied.train(), twin.train()):
            train_step(each, torch.optim.Adam(each.parameters(), lr=0.1), batches(1)[0])
        assert_same_bits(copied.state_dict(), twin.state_dict())
        assert not torch.equal(copied[5].weight, before["5.weight"])
        assert_same_bits(model.state_dict(), before)
    run.detach()


def footprint(model, optimizer, trainer):
    """How many hooks there are, by where they are."""
    found = {f"event {event}": len(found) for event, found in trainer._event_handlers.items() if found}
    for name, parameter in model.named_parameters():
        found[name] = len(parameter._post_accumulate_grad_hooks or ()) + len(parameter._backward_hooks or ())
    for name, module in model.named_modules():
        kinds = (
            "_forward_pre_hooks",
            "_forward_hooks",
            "_backward_hooks",
            "_state_dict_hooks",
            "_state_dict_pre_hooks",
        )
        found[f"module {name}"] = sum(len(getattr(module, kind)) for kind in kinds) + ("forward" in vars(module))
    for kind in ("_step_pre", "_step_post", "_load_state_dict_post", "_state_dict_post"):
        found[kind] = len(getattr(optimizer, f"_optimizer{kind}_hooks"))
    found["global"] = len(torch_optimizer._global_optimizer_pre_hooks) + len(
        torch_optimizer._global_optimizer_post_hooks
    )
    return found


@rows
def test_detached_nothing_is_left(row):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before = footprint(model, optimizer, create_supervised_trainer(model, optimizer, nn.functional.cross_entropy))
    objects = row.objects(model, optimizer)
    trainer = create_supervised_trainer(model, optimizer, row.loss_fn(objects))
    for _ in range(2):
        row.attach(objects, trainer)
        assert footprint(model, optimizer, trainer) != before
        trainer.state.max_epochs = None
        trainer.run(batches(3), max_epochs=2)
        for name in row.attached:
            objects[name].detach()
        if "pruner" in objects and "pruner" not in row.attached:
            objects["pruner"].detach()
        after = footprint(model, optimizer, trainer)
        assert after.pop("global") <= before["global"], "what earlier tests forgot may have been swept up"
        assert after == {key: value for key, value in before.items() if key != "global"}


def on_a_rank(rank, name):
    row, model = find(HANDLERS, name), small_net()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=0.01)
    objects = row.objects(model, optimizer)
    trainer = create_supervised_trainer(parallel, optimizer, row.loss_fn(objects))
    row.attach(objects, trainer)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.run(batches(4, seed=rank), max_epochs=3)  # other data on each rank
    moved = any(not torch.equal(start[key], value) for key, value in model.state_dict().items())
    masks = getattr(owner_of_masks(row, objects), "masks", {})
    for each in row.attached:
        objects[each].detach()
    weights = {key: parameter.tolist() for key, parameter in model.named_parameters()}
    learnt = owner_of_masks(row, objects).state_dict().get("projections", {})  # which DDP does not reduce
    return moved, weights, {key: each.tolist() for key, each in {**masks, **learnt}.items()}


@pytest.mark.parametrize("row", [row for row in HANDLERS if row.name != "shrunk"], ids=str)
def test_two_ranks_are_equal(row):
    first, second = on_two_ranks(on_a_rank, row.name)
    assert first[0] and first == second
