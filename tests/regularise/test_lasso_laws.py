"""Group lasso and slimming as handlers: their formulas under every optimizer, beside a pruner, over ranks."""

import copy
import gc
import weakref

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers.param_scheduler import PiecewiseLinear
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import optimizer as torch_optimizer

from ignite_prune import MaskStore, PruneHandler, pattern, schedule, shrink, trace
from ignite_prune.core import step_hooks
from ignite_prune.handlers import GroupLasso, Slimming
from tests.catalogue import OPTIMIZERS
from tests.golden_values import tensor
from tests.models import WEIGHTS, assert_zero, batches, small_net, train_step
from tests.ranks import on_two_ranks

FILE = "group_lasso"
DENSE = [row for row in OPTIMIZERS if not {"sparse", "matrices"} & set(row.notes)]


def lasso(model, **options):
    options = {"strength": 0.05, "pattern": pattern.Channel(), **options}
    return GroupLasso(model, **options)


def matrix():
    layer = nn.Linear(12, 8, bias=False).double()
    layer.weight.data.copy_(tensor(FILE, "w"))
    layer.weight.grad = tensor(FILE, "grad")
    return layer


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("proximal", [False, True])
def test_a_step_is_the_references(proximal, given):
    layer, lr, alpha = matrix(), float(tensor(FILE, "lr")), float(tensor(FILE, "alpha"))
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    strength = float(tensor(FILE, "2x2_prox_threshold")) / lr if proximal else alpha
    handler = GroupLasso(
        layer,
        strength=strength,
        pattern=pattern.Block((2, 2)),
        proximal=proximal,
        optimizer=optimizer if given else None,
    )
    handler.attach(Engine(lambda engine, batch: None))
    optimizer.step()
    w, grad = tensor(FILE, "w"), tensor(FILE, "grad")
    expected = tensor(FILE, "2x2_prox_w") if proximal else w - lr * (grad + tensor(FILE, "2x2_subgradient_term"))
    torch.testing.assert_close(layer.weight.data, expected, rtol=1e-9, atol=1e-12)
    handler.detach()


def penalised(model, strength):
    """The textbook's way: the penalty in the loss, by autograd."""
    return strength * sum(model.get_parameter(name).flatten(1).norm(dim=1).sum() for name in WEIGHTS)


@pytest.mark.parametrize("row", DENSE, ids=str)
def test_gradient_form_is_a_penalty_in_the_loss(row):
    ours, textbook = small_net().double(), small_net().double()
    handler = lasso(ours, proximal=False)
    handler.attach(Engine(lambda engine, batch: None))
    optimizers = [row.make(model.parameters()) for model in (ours, textbook)]
    sign = -1 if row.name == "sgd_maximize" else 1  # the penalty wants to be small all the same
    for x, y in ((x.double(), y) for x, y in batches(3)):
        train_step(ours, optimizers[0], (x, y), closure=row.notes.get("closure", False))

        def backward(x=x, y=y):
            optimizers[1].zero_grad()
            loss = cross_entropy(textbook(x), y) + sign * penalised(textbook, 0.05)
            loss.backward()
            return loss

        if row.notes.get("closure"):
            optimizers[1].step(backward)
        else:
            backward()
            optimizers[1].step()
    handler.detach()
    for name in WEIGHTS:  # a bias before a BatchNorm has a gradient of nothing but rounding
        torch.testing.assert_close(ours.get_parameter(name), textbook.get_parameter(name), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("proximal", [False, True])
def test_amp_and_accumulation(fused, proximal):
    x, y = batches(1)[0]
    results = []
    for amp in (False, True):
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        handler = lasso(model, proximal=proximal)
        handler.attach(Engine(lambda engine, batch: None))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=amp)
        for half in range(2):  # two backward passes, one step
            scaler.scale(cross_entropy(model(x), y) / 2).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        before = copy.deepcopy(model.state_dict())
        if amp:  # a step that is left out changes nothing
            scaler.scale(cross_entropy(model(x), y) * float("inf")).backward()
            before = copy.deepcopy(model.state_dict())
            scaler.step(optimizer)
            for name, value in model.state_dict().items():
                assert torch.equal(value, before[name]), name
        handler.detach()
        results.append(before)
    for name in results[0]:
        if "weight" in name or "bias" in name:
            torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("first", ["pruner", "lasso"])
@pytest.mark.parametrize("row", DENSE, ids=str)
def test_zero_stays_zero_beside_a_pruner(row, first, proximal):
    model = small_net()
    optimizer = row.make(model.parameters())
    engine = Engine(lambda engine, batch: None)
    pruner = PruneHandler(model, optimizer)
    handler = lasso(model, proximal=proximal, optimizer=optimizer, strength=0.01)
    for each in (pruner, handler) if first == "pruner" else (handler, pruner):
        each.attach(engine)
    closure = row.notes.get("closure", False)
    for number, batch in enumerate(batches(4)):
        train_step(model, optimizer, batch, closure)
        assert_zero(pruner, optimizer)
        if number < 2:
            pruner.step(0.3 * (number + 1))
            assert_zero(pruner, optimizer)
    assert pruner.sparsity == pytest.approx(0.6, abs=1e-3)


def test_several_optimizers_shrink_by_their_own_rates():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    for layer in model:
        nn.init.eye_(layer.weight)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=lr) for layer, lr in zip(model, (0.1, torch.tensor(0.25)))]
    handler = lasso(model, strength=2.0, optimizer=optimizers)
    handler.attach(Engine(lambda engine, batch: None))
    (0 * model(torch.ones(1, 3)).sum()).backward()
    model[1].weight.grad = None  # a parameter that is not stepped is left alone
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(model[0].weight.data, 0.8 * torch.eye(3))
    assert torch.equal(model[1].weight, torch.eye(3))
    model[1].weight.grad = torch.zeros(3, 3)
    optimizers[1].step()
    torch.testing.assert_close(model[1].weight.data, 0.5 * torch.eye(3))
    assert handler.penalty() == pytest.approx(2 * 3 * (0.8 + 0.5))
    handler.detach()


def trained(model, handler=None, steps=60, lr=0.1, seed=3):
    x, y = batches(1, seed)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)
    if handler is not None:
        handler.attach(trainer)
    trainer.run([(x, y)] * steps, max_epochs=1)
    return trainer


@pytest.mark.parametrize("shape", [pattern.Channel(dim=1), pattern.Block((4, 4)), pattern.NofM(2, 4)], ids=str)
def test_training_empties_units(shape):
    model = small_net()
    trainer = trained(model, lasso(model, pattern=shape, strength=0.1))
    published = trainer.state.group_lasso
    assert 0.2 < published["zero"] < 1.0 and trainer.state.metrics["group_lasso"] == published["penalty"] > 0
    assert cross_entropy(model(batches(1, 3)[0][0]), batches(1, 3)[0][1]) < 1.2  # it has learnt for all that
    if shape.share < 1:
        assert MaskStore.from_nonzero(model).sparsity <= 0.5  # the best two of four are never penalised
    without = small_net()
    trained(without)
    assert MaskStore.from_nonzero(without).sparsity == 0


def test_coupled_units_go_as_wholes_and_can_be_sliced_off():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)
    )
    x = torch.randn(64, 16)
    y = torch.stack([x[:, 0], x[:, 1] * x[:, 0]], 1)
    structure = trace(model, x[:2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = create_supervised_trainer(model, optimizer, mse_loss)
    handler = GroupLasso(model, strength=0.1, structure=structure, optimizer=optimizer)
    handler.attach(trainer)
    trainer.run([(x, y)] * 200, max_epochs=1)
    zero = trainer.state.group_lasso["zero"]
    assert 0.1 < zero < 1
    handler.detach()
    everything = dict(model.named_parameters())
    kept = {}
    for group in structure:  # a unit's slices are zero together or not at all
        slices = []
        for slot in group.slots:
            if slot.name in everything:
                weight = everything[slot.name].detach()
                slices.append(weight.movedim(slot.dim, 0).flatten(1).any(1) if weight.ndim > 1 else weight != 0)
        kept[group.name] = torch.stack(slices).any(0)
    assert sum(int((~k).sum()) for k in kept.values()) == round(zero * sum(group.size for group in structure))
    masks = structure.masks(kept)
    model.eval()
    expected, before = model(x), sum(p.numel() for p in model.parameters())
    shrink(model, {n: m for n, m in masks.items() if n in everything}, x[:2])
    assert sum(p.numel() for p in model.parameters()) < before
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("proximal", [False, True])
def test_slimming_moves_scales_to_zero(proximal):
    plain, slim = small_net(), small_net()
    trained(plain)
    trainer = trained(slim, Slimming(slim, strength=0.2, proximal=proximal))
    assert slim[1].weight.abs().sum() < 0.8 * plain[1].weight.abs().sum()
    assert trainer.state.slimming["penalty"] == pytest.approx(0.2 * float(slim[1].weight.detach().abs().sum()))
    assert (trainer.state.slimming["zero"] > 0) is proximal


def test_strength_follows_a_schedule_or_a_param_scheduler():
    model = small_net()
    scheduled = lasso(model, strength=schedule.Linear(0.4, begin=0, end=4))
    driven = lasso(model, params=[{"params": "0.weight", "strength": 0.0}, {"params": "7.weight", "strength": 0.3}])
    trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), cross_entropy)
    scheduled.attach(trainer, name="one")
    driven.attach(trainer, name="two")
    trainer.add_event_handler(
        Events.ITERATION_STARTED, PiecewiseLinear(driven, "strength", [(0, 0.0), (10, 1.0)], param_group_index=0)
    )
    seen = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(scheduled.param_groups[0]["strength"]))
    assert scheduled.param_groups[0]["strength"] == 0
    trainer.run(batches(2), max_epochs=3)
    assert seen == pytest.approx([0.1, 0.2, 0.3])
    assert [group["strength"] for group in driven.param_groups] == pytest.approx([0.5, 0.3])
    norms = model[0].weight.detach().flatten(1).norm(dim=1), model[7].weight.detach().flatten(1).norm(dim=1)
    assert driven.penalty() == pytest.approx(0.5 * float(norms[0].sum()) + 0.3 * float(norms[1].sum()), rel=1e-5)
    trainer.run(batches(2), max_epochs=6)
    assert scheduled.param_groups[0]["strength"] == 0.4


def test_nothing_leaks():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)
    state = copy.deepcopy(trainer._event_handlers)
    gc.collect()
    handler = lasso(model)
    handler.attach(trainer)  # sweeps what others have forgotten
    handler.detach()
    everyone = len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)
    for given in (None, optimizer):
        for handler in (lasso(model, optimizer=given), Slimming(model, strength=0.1, optimizer=given)):
            for _ in range(2):
                handler.attach(trainer)
                handler.detach()
    assert {e: len(h) for e, h in trainer._event_handlers.items() if h} == {e: len(h) for e, h in state.items() if h}
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    now = len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)
    assert now <= everyone  # hooks of other tests' objects, gone by now, may have been swept up
    copy.deepcopy(model)


def test_a_forgotten_handler_dies_with_its_engine():
    handler = lasso(small_net())
    before = len(torch_optimizer._global_optimizer_pre_hooks)
    handler.attach(Engine(lambda engine, batch: None))
    forgotten = weakref.ref(handler)
    del handler
    gc.collect()
    assert forgotten() is None
    other = lasso(small_net())
    other.attach(Engine(lambda engine, batch: None))  # sweeps
    other.detach()
    assert len(torch_optimizer._global_optimizer_pre_hooks) == before  # one pair for all, whoever is attached
    assert not any(each() is None for each in step_hooks._EVERY_STEP._installed)


def test_a_handler_may_die_in_the_middle_of_a_step():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        lasso(model).attach(Engine(lambda engine, batch: None))

    @optimizer.register_step_pre_hook
    def sweep(*_):
        gc.collect()

    train_step(model, optimizer, batches(1)[0])
    sweeper = lasso(model)
    sweeper.attach(Engine(lambda engine, batch: None))
    sweeper.detach()


def on_a_rank(rank, proximal):
    model = small_net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = create_supervised_trainer(wrapped, optimizer, cross_entropy)
    handler = GroupLasso(wrapped, strength=0.5, pattern=pattern.Channel(dim=1), proximal=proximal)
    handler.attach(trainer)
    trainer.run(batches(8, seed=10 + rank), max_epochs=2)
    return [p.tolist() for p in model.parameters()], trainer.state.group_lasso["zero"]


@pytest.mark.parametrize("proximal", [False, True])
def test_ranks_agree(proximal):
    first, second = on_two_ranks(on_a_rank, proximal)
    assert first == second and (first[1] > 0) is proximal


def test_bad_arguments():
    model = small_net()
    structure = trace(model, torch.zeros(2, 4, 8, 8))
    other = trace(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.zeros(1, 4))
    for options, error, told in [
        ({"strength": -1}, ValueError, "strength should be a finite number of at least 0"),
        ({"strength": float("nan")}, ValueError, "strength"),
        ({"strength": "much"}, TypeError, "strength should be a number"),
        ({"pattern": None}, ValueError, "pattern= or structure="),
        ({"structure": structure}, ValueError, "pattern= or structure="),
        ({"pattern": pattern.Coupled()}, TypeError, "structure="),
        ({"pattern": pattern.Channel}, TypeError, "pattern"),
        ({"pattern": pattern.Block((3, 3))}, ValueError, "Parameter '0.weight': .*does not fit"),
        ({"pattern": None, "structure": 3}, TypeError, "trace"),
        ({"pattern": None, "structure": other}, ValueError, "another model"),
        ({"proximal": 1}, TypeError, "proximal should be a bool"),
        ({"by_size": "yes"}, TypeError, "by_size should be a bool"),
        ({"params": "0.weigth"}, ValueError, "near matches: '0.weight'"),
        ({"params": [{"params": "0.weight", "strenght": 1}]}, ValueError, "near matches: 'strength'"),
        ({"params": [{"params": "0.weight"}, {"params": "*.weight"}]}, ValueError, "appears in group 0 and again"),
        ({"optimizer": 3}, TypeError, "optimizer"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())}, ValueError, "does not hold"),
    ]:  # fmt: skip
        with pytest.raises(error, match=told):
            lasso(model, **options)
    with pytest.raises(ValueError, match="BatchNorm"):
        Slimming(nn.Linear(2, 2), strength=0.1)
    handler, engine = lasso(model), Engine(lambda engine, batch: None)
    with pytest.raises(TypeError, match="Engine"):
        handler.attach(model)
    handler.attach(engine)
    with pytest.raises(ValueError, match="attached already"):
        handler.attach(engine)
    with pytest.raises(ValueError, match="name of its own"):
        lasso(model).attach(engine)
    handler.detach()
    good = handler.state_dict()
    for bad, error in [
        (None, TypeError), ({}, TypeError), ({**good, "version": 9}, ValueError), ({"version": 1}, ValueError),
        ({**good, "strengths": []}, ValueError), ({**good, "strengths": [-1.0]}, ValueError),
        ({**good, "progress": 1}, TypeError),
    ]:  # fmt: skip
        with pytest.raises(error):
            handler.load_state_dict(bad)
    assert handler.state_dict() == good


def test_sparse_gradients_take_the_proximal_form():
    embedding = nn.Embedding(6, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=0.1)
    for proximal in (True, False):
        handler = lasso(embedding, params="weight", proximal=proximal, strength=100.0)
        handler.attach(Engine(lambda engine, batch: None))
        optimizer.zero_grad()
        embedding(torch.tensor([1, 2])).sum().backward()
        try:
            if proximal:
                optimizer.step()
                assert not embedding.weight.any()
            else:
                with pytest.raises(ValueError, match="use proximal=True"):
                    optimizer.step()
        finally:
            handler.detach()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_empty_units_of_half_precision_get_no_gradient(dtype):
    layer = nn.Linear(8, 4).to(dtype)
    with torch.no_grad():
        layer.weight[:2] = torch.tensor([[0.0], [1e-7]])
    layer.weight.grad = torch.zeros_like(layer.weight)
    engine = Engine(lambda engine, batch: None)  # a handler dies with its engine
    lasso(layer, strength=0.01, pattern=pattern.Channel(), proximal=False).attach(engine)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    norms = layer.weight.grad.float().norm(dim=1)
    assert norms[0] == 0 and norms[1:].tolist() == pytest.approx([0.01] * 3, rel=0.02)


def test_an_optimizer_that_is_given_keeps_the_handler():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    lasso(model, optimizer=optimizer, strength=1.0, proximal=False).attach(Engine(lambda engine, batch: None))
    gc.collect()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert model[5].weight.grad.any()
