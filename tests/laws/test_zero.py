"""Law 4: zero is zero, after every step of every optimizer, however the loop is written."""

import copy

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, schedule
from tests.catalogue import OPTIMIZERS
from tests.models import WEIGHTS, assert_zero, batches, small_net, train_step


def model_for(row):
    if row.notes.get("matrices"):
        return nn.Sequential(nn.Flatten(), nn.Linear(256, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False))
    if row.notes.get("sparse"):
        return nn.Sequential(nn.Embedding(8, 4, sparse=True), nn.Flatten())
    return small_net()


def data_for(row):
    if row.notes.get("sparse"):
        generator = torch.Generator().manual_seed(0)
        return [(torch.randint(8, (6, 1), generator=generator), torch.randint(4, (6,))) for _ in range(5)]
    return batches()


@pytest.mark.parametrize("row", OPTIMIZERS, ids=str)
def test_every_optimizer(row):
    model = model_for(row)
    optimizer = row.make(model.parameters())
    pruner = PruneHandler(model, optimizer, "0.weight" if row.notes.get("sparse") else None)
    before = copy.deepcopy(model.state_dict())
    for index, batch in enumerate(data_for(row) * 3):
        if index in (3, 7):
            pruner.step(0.5 if index == 3 else 0.8)
            assert_zero(pruner, optimizer)
        train_step(model, optimizer, batch, row.notes.get("closure", False))
        assert_zero(pruner, optimizer)
    assert pruner.sparsity == pytest.approx(0.8, abs=0.02)
    moved = [
        not torch.equal(before[name][m], p[m])
        for (name, m), p in zip(pruner.masks.items(), pruner.masks.parameters.values())
    ]
    assert all(moved), "what is kept is trained"


@pytest.mark.parametrize("row", [row for row in OPTIMIZERS if not row.notes], ids=str)
def test_loaded_optimizer_state_is_masked(row):
    model = small_net()
    optimizer = row.make(model.parameters())
    for batch in batches():
        train_step(model, optimizer, batch)
    dense = copy.deepcopy(optimizer.state_dict())
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.7)
    optimizer.load_state_dict(dense)
    for batch in batches():
        train_step(model, optimizer, batch)
        assert_zero(pruner, optimizer)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("amp", [None, "amp"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_supervised_trainer(amp, accumulate):
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    trainer = create_supervised_trainer(
        model, optimizer, nn.functional.cross_entropy, amp_mode=amp, gradient_accumulation_steps=accumulate
    )
    pruner = PruneHandler(model, optimizer, schedule=schedule.Linear(0.9, begin=2, end=12))
    pruner.attach(trainer, Events.ITERATION_COMPLETED)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: assert_zero(pruner, optimizer))
    trainer.run(batches(), max_epochs=4)
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("infinite", [False, True])
def test_grad_scaler_steps_and_skipped_steps(fused, infinite):
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.6)
    for index, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        scaler.scale(loss * (float("inf") if infinite and index % 2 else 1.0)).backward()
        if not infinite:  # clipping by an infinite norm makes NaN of every gradient, 0 included
            scaler.unscale_(optimizer)
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
        scaler.step(optimizer)
        scaler.update()
        assert_zero(pruner, optimizer)


def test_clipping_sees_no_pruned_gradient():
    model, (batch, *_) = small_net(), batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.9)
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    kept = [p.grad if n not in pruner.masks else p.grad[pruner.masks[n]] for n, p in model.named_parameters()]
    expected = torch.cat([g.flatten() for g in kept]).norm()
    torch.testing.assert_close(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9), expected)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(torch.tanh(self.encoder(x)))


def test_tied_parameters_are_pruned_once():
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    pruner = PruneHandler(model, optimizer)
    assert list(pruner.masks) == ["encoder.weight"] == list(PruneHandler(model, params="decoder.weight").masks)
    pruner.step(0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        assert_zero(pruner, optimizer)
    assert model.decoder.weight is model.encoder.weight


def test_several_optimizers():
    model = small_net()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.Rprop(list(model[5].parameters()) + list(model[7].parameters()), lr=0.01)
    pruner = PruneHandler(model, [first, second])
    pruner.step(0.8)
    for x, y in batches():
        first.zero_grad(), second.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        first.step(), second.step()
        assert_zero(pruner, first, second)


def test_without_an_optimizer_masks_are_applied_every_iteration():
    model = small_net()
    hidden = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = create_supervised_trainer(model, hidden, nn.functional.cross_entropy)
    pruner = PruneHandler(model, schedule=schedule.OneShot(0.8, at=3))
    pruner.attach(trainer, Events.ITERATION_COMPLETED)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: assert_zero(pruner))
    trainer.run(batches(), max_epochs=3)
    assert pruner.sparsity == 0.8


@pytest.mark.filterwarnings("ignore:Pruned weights are not 0")
@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_and_weights_written_by_hand(set_to_none):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.8)
    for index in range(6):
        for p in model.parameters():
            if index % 2:
                p.grad = torch.randn_like(p)  # no backward at all
            else:
                p.grad.add_(1.0) if p.grad is not None else None  # gradient noise
        if index == 3:
            with torch.no_grad():
                model[5].weight.add_(1.0)  # a weight written to in between
        if index == 4:
            model.load_state_dict(small_net(9).state_dict())  # dense weights loaded over it
        optimizer.step()
        assert_zero(pruner, optimizer)
        optimizer.zero_grad(set_to_none=set_to_none)


def test_nan_gradients_do_not_revive_what_is_pruned():
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.5)
    x, y = batches()[0]
    (nn.functional.cross_entropy(model(x), y) * float("nan")).backward()
    optimizer.step()
    assert_zero(pruner, optimizer)


def test_frozen_parameters_are_masked_and_may_thaw():
    model = small_net()
    model[5].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.5)
    model[5].weight.requires_grad_(True)
    for batch in batches():
        train_step(model, optimizer, batch)
        assert_zero(pruner, optimizer)
    assert not model[5].weight[~pruner.masks["5.weight"]].any()


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph")
def test_a_graph_of_gradients_sees_the_masks():
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    pruner = PruneHandler(model)
    pruner.step(0.5)
    model(torch.randn(2, 4)).square().sum().backward(create_graph=True)
    grad = model[0].weight.grad
    assert grad.requires_grad and not grad[~pruner.masks["0.weight"]].any()
    grad.square().sum().backward()


def test_custom_loop_with_an_engine_of_ones_own():
    model = small_net()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01)

    def update(engine, batch):  # zeroes gradients late and steps every other iteration
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        if engine.state.iteration % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()

    trainer = Engine(update)
    pruner = PruneHandler(model, optimizer, schedule=schedule.Cosine(0.8, begin=0, end=9))
    pruner.attach(trainer, Events.ITERATION_STARTED)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: assert_zero(pruner, optimizer))
    trainer.run(batches(), max_epochs=2)
    assert pruner.sparsity == 0.8 and set(pruner.masks) == set(WEIGHTS)


def test_the_model_moves_to_another_type():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.5)
    model.double()
    for x, y in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
        assert_zero(pruner, optimizer)


@pytest.mark.filterwarnings("ignore:Pruned weights are not 0")
@pytest.mark.parametrize("row", [row for row in OPTIMIZERS if not row.notes], ids=str)
def test_a_weight_written_before_a_step_leaves_no_trace(row):
    """A model's checkpoint loaded, weights clipped or averaged: decay would put the weight into the slots."""
    model = small_net()
    optimizer = row.make(model.parameters())
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.1
    pruner = PruneHandler(model, optimizer)
    pruner.step(0.5)
    for batch in batches(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        with torch.no_grad():
            model[5].weight.add_(1.0)
        optimizer.step()
        assert_zero(pruner, optimizer)


@pytest.mark.filterwarnings("ignore::ignite_prune.SparsityWarning")
@pytest.mark.parametrize("row", [row for row in OPTIMIZERS if not row.notes], ids=str)
def test_large_weights_stay_zero_and_a_write_through_data_is_masked(row):
    """The pass over the weight after a step is left out where the optimizer leaves a zero at zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = row.make(model.parameters())
    pruner = PruneHandler(model, optimizer, "1.weight")
    pruner.step(0.5)
    pruned = (~pruner.masks["1.weight"]).flatten().nonzero().flatten()
    for index, batch in enumerate(batches() * 2):
        if index in (2, 5):  # all pruned entries, so that any reading sees it
            model[1].weight.data.view(-1)[pruned] = float("nan") if index == 5 else 1.0
        if index == 3:
            optimizer.state[model[1].weight]["momentum_buffer"] = torch.ones_like(model[1].weight)
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train_step(model, optimizer, batch)
        assert_zero(pruner, optimizer)
    model[1].weight.data.view(-1)[pruned[7]] = 1.0  # one entry: seen at the latest when the hooks go
    train_step(model, optimizer, batches()[0])
    pruner.detach()
    assert not model[1].weight.detach().view(-1)[pruned].any()
