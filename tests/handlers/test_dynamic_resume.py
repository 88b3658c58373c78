"""Dynamic sparse training goes on from a checkpoint bit for bit, and every rank agrees."""

import io

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune.handlers import SET, RigL, SparseMomentum, SRigL
from tests.handlers import dynamic_run
from tests.handlers.dynamic_run import HANDLERS
from tests.laws.test_resume import assert_resumes
from tests.models import assert_same_bits, assert_zero, batches, small_net
from tests.ranks import on_two_ranks


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("first", [True, False], ids=["checkpoint_first", "checkpoint_last"])
@pytest.mark.parametrize("name", HANDLERS)
def test_from_every_iteration_around_an_update(tmp_path, name, first):
    options = {"handler": name, "folder": str(tmp_path), "first": first}
    dynamic_run.run({**options, "result": "whole.result"})
    for at in (2, 3, 4, 5, 6, 12, 15):
        # Another seed: all that matters comes from the checkpoint.
        dynamic_run.run({**options, "result": "again.result", "from": at, "seed": 5})
        assert_same_bits(load(tmp_path / "whole.result"), load(tmp_path / "again.result"))


@pytest.mark.parametrize("name", HANDLERS)
def test_whatever_is_loaded_first(tmp_path, name):
    options = {"handler": name, "folder": str(tmp_path), "first": True}
    dynamic_run.run({**options, "result": "whole.result"})
    for at in (6, 7):
        dynamic_run.run({**options, "result": "again.result", "from": at, "seed": 5, "reverse": True})
        assert_same_bits(load(tmp_path / "whole.result"), load(tmp_path / "again.result"))


@pytest.mark.parametrize("first", [True, False])
def test_with_accumulated_gradients(tmp_path, first):
    """Updates are due at 3, 6, 9, 12 and made at the steps 4, 6, 10, 12; gradients are in no checkpoint but ours."""
    options = {"handler": "rigl", "folder": str(tmp_path), "first": first, "accumulate": 2}
    dynamic_run.run({**options, "result": "whole.result"})
    for at in (2, 4, 6, 10):
        dynamic_run.run({**options, "result": "again.result", "from": at, "seed": 5})
        assert_same_bits(load(tmp_path / "whole.result"), load(tmp_path / "again.result"))


@pytest.mark.parametrize(
    ("name", "checkpoint", "die_at"),
    [("rigl", "iteration_completed", 6), ("rigl", "masks_updated", 8), ("sparse_momentum", "epoch_completed", 12)],
)
def test_killed(tmp_path, name, checkpoint, die_at):
    assert_resumes(tmp_path, die_at, run=dynamic_run.run, handler=name, checkpoint=checkpoint, first=True)


@pytest.mark.parametrize("name", HANDLERS)
def test_state_is_plain_and_refused_whole(name):
    objects = dynamic_run.build({"handler": name})
    objects["pruner"].attach(objects["trainer"])
    objects["trainer"].run(batches(5))
    state = objects["pruner"].state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert_same_bits(torch.load(file, weights_only=True), state)
    other = dynamic_run.build({"handler": name, "seed": 3})["pruner"]
    before = other.state_dict()
    bad = [{**state, "version": 99}, {**state, "masks": {**state["masks"], "names": ["a", "b", "c"]}}]
    bad += [{key: value for key, value in state.items() if key != lost} for lost in state]
    if name in ("set", "rigl", "srigl", "sparse_momentum"):
        bad += [{**state, "generator": torch.zeros(3)}, {**state, "steps": [1]}, {**state, "heard": {"first": 1}}]
        bad += [{**state, "budgets": {}}, {**state, "kind": "PruneHandler"}]
    for wrong in bad:
        if name == "set" and wrong.get("heard") == {"first": 1}:
            continue
        with pytest.raises((TypeError, ValueError)):
            other.load_state_dict(wrong)
        assert_same_bits(other.state_dict(), before)
    other.load_state_dict(state)
    assert all(torch.equal(mask, objects["pruner"].masks[key]) for key, mask in other.masks.items())


def ranks(rank, name):
    model = small_net()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=0.01)
    trainer = create_supervised_trainer(parallel, optimizer, nn.functional.cross_entropy)
    options = {"every": 2, "end": 100, "sparsity": 0.8}
    if name == "set_on_its_own_seed":
        pruner = SET(parallel, optimizer, **options)  # a seed of its own on each rank
    elif name in ("rigl", "srigl", "sparse_momentum"):
        kind = {"rigl": RigL, "srigl": SRigL, "sparse_momentum": SparseMomentum}[name]
        pruner = kind(parallel, optimizer, generator=torch.Generator().manual_seed(3), **options)
    else:
        pruner = HANDLERS[name](parallel, optimizer)
    start = {key: mask.clone() for key, mask in pruner.masks.items()}
    heard = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def hear():  # before the update: what it grows by, which broadcasting the masks would hide
        if name in ("rigl", "srigl"):
            held = pruner.state_dict()["heard"]["gradients"]
            heard.append({key: value.flatten()[::7].tolist() for key, value in held.items()})

    pruner.attach(trainer)
    trainer.run(batches(5, seed=rank), max_epochs=2)  # other data on each rank
    if name not in ("top_kast", "sr_ste"):
        assert_zero(pruner, optimizer)
    moved = any(not torch.equal(start[key], mask) for key, mask in pruner.masks.items())
    weights = [p.detach().double().sum().item() for p in model.parameters()]
    assert not heard or any(heard)
    return moved, weights, heard, {key: mask.tolist() for key, mask in pruner.masks.items()}


@pytest.mark.parametrize("name", ["set_on_its_own_seed", "rigl", "srigl", "sparse_momentum", "top_kast", "sr_ste"])
def test_two_ranks_are_equal(name):
    first, second = on_two_ranks(ranks, name)
    assert first[0] and first == second
