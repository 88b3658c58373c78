"""Law 13 over ways to train: what is published is the zeros of the model's own parameters, or a warning was given."""

import copy
import warnings

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from ignite_prune import PrunedWeightsAlive, PruneHandler, SparsityWarning
from ignite_prune.handlers import SET
from tests.models import batches, train_step

DATA = batches(12)
AT = 4  # the iteration at which a way does what it does


def net():
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
    return nn.Sequential(*layers)


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), lr=0.01, **options)


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0].to(model[1].weight.dtype)).float(), batch[1])


# A way: function of a model -> (what the pruner is given, step of an iteration and a batch).


def plain(make, act=lambda model, optimizer: None):
    """Train as usual, and do something once before a step."""

    def way(model):
        optimizer = make(model)

        def step(iteration, batch):
            if iteration == AT:
                act(model, optimizer)
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()

        return optimizer, step

    return way


def overflowing(model):
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), torch.amp.GradScaler("cpu")

    def step(iteration, batch):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch) * (float("inf") if iteration % 3 == 0 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()

    return optimizer, step


def odd_gradients(model):
    optimizer = adam(model, weight_decay=0.1)

    def step(iteration, batch):
        loss_of(model, batch).backward()
        optimizer.step()
        for parameter in model.parameters():
            parameter.grad = None if iteration % 2 else torch.randn_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return optimizer, step


def functional(model):
    optimizer = adam(model)

    def step(iteration, batch):
        held = {name: parameter.detach() for name, parameter in model.named_parameters()}
        loss = lambda p: nn.functional.cross_entropy(torch.func.functional_call(model, p, (batch[0],)), batch[1])  # noqa: E731
        for name, gradient in torch.func.grad(loss)(held).items():
            model.get_parameter(name).grad = gradient
        optimizer.step()

    return optimizer, step


def recomputed(model):
    optimizer = adam(model)

    def step(iteration, batch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(checkpoint(model, batch[0], use_reentrant=False), batch[1]).backward()
        optimizer.step()

    return optimizer, step


def made_later(model):
    held = [adam(model)]

    def step(iteration, batch):
        if iteration == AT:
            held[0] = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        train_step(model, held[0], batch)

    return None, step


def in_turn(model):
    both = [adam(model), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)]
    return both, lambda iteration, batch: train_step(model, both[iteration % 2], batch)


def halve(model, optimizer):
    model.bfloat16()
    optimizer.state.clear()


SILENT = {
    "fused": plain(lambda model: adam(model, fused=True)),
    "foreach": plain(lambda model: adam(model, foreach=True, maximize=True)),
    "of_names": plain(lambda model: torch.optim.AdamW(model.named_parameters(), lr=0.01)),
    "slots_loaded": plain(
        adam, lambda model, optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ),
    "other_dtype": plain(adam, halve),
    "frozen_and_thawed": plain(adam, lambda model, optimizer: model[1].requires_grad_(False)),
    **{way.__name__: way for way in (overflowing, odd_gradients, functional, recomputed, made_later, in_turn)},
}


class Plus(nn.Module):
    def forward(self, weight):
        return weight + 0.1


def exchange(model, optimizer):
    model[3] = nn.Linear(32, 32)
    optimizer.add_param_group({"params": list(model[3].parameters())})


def renew(model, optimizer):
    model[3].weight = nn.Parameter(torch.randn(32, 32))


def assign(model, optimizer):
    model.load_state_dict({name: torch.randn_like(each) for name, each in model.state_dict().items()}, assign=True)


def average(model, optimizer):
    model.load_state_dict({name: each + 0.1 for name, each in model.state_dict().items()})


def swap_data(model, optimizer):
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)


TOLD = {
    "exchanged": (exchange, "does not hold the masked parameters 3.weight any more"),
    "renewed": (renew, "does not hold the masked parameters 3.weight any more"),
    "assigned": (assign, "does not hold the masked parameters 1.weight, 3.weight, 5.weight any more"),
    "weight_norm": (lambda model, _: parametrizations.weight_norm(model[3]), "masked parameters 3.weight any more"),
    "spectral_norm": (lambda model, _: parametrizations.spectral_norm(model[3]), "parameters 3.weight any more"),
    "own": (lambda model, _: parametrize.register_parametrization(model[3], "weight", Plus()), "3.weight any more"),
    "averaged": (average, "written between two steps"),
    "data": (swap_data, "written between two steps"),
}


def run(way, kind=PruneHandler, strict=False):
    """Train with fixed masks; return at which iterations what is published was not so, though nothing was told."""
    model, lies, published = net(), [], []
    given, step = way(model)
    trainer = Engine(lambda engine, batch: step(engine.state.iteration, batch))
    if kind is SET:
        pruner = SET(model, given, sparsity=0.6, every=1000, end=None)
    else:
        pruner = PruneHandler(model, given, strict=strict)
        pruner.step(0.6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        @trainer.on(Events.STARTED)
        def attach():
            trainer.add_event_handler(Events.ITERATION_COMPLETED, look)

        def look(engine):
            now = dict(model.named_parameters())
            dead = sum(int((now[name][~mask] == 0).sum()) for name, mask in pruner.masks.items() if name in now)
            told = any(issubclass(each.category, SparsityWarning) for each in caught)
            published.append(engine.state.sparsity["global"])
            if published[-1] != dead / sum(mask.numel() for mask in pruner.masks.values()) and not told:
                lies.append(engine.state.iteration)

        pruner.attach(trainer) if kind is SET else pruner.attach(trainer, Events.COMPLETED)
        try:
            trainer.run(DATA, max_epochs=1)
        except ValueError as error:  # of the update at the end, which is refused
            assert "has been replaced" in str(error)
    assert len(published) == len(DATA) and published[0] == pytest.approx(0.6, abs=0.01)
    return lies, [str(each.message) for each in caught if issubclass(each.category, SparsityWarning)], pruner


@pytest.mark.parametrize("name", SILENT)
def test_zeros_are_what_is_published(name):
    lies, told, pruner = run(SILENT[name])
    assert not lies and not told and pruner.check()


@pytest.mark.parametrize("kind", [PruneHandler, SET])
@pytest.mark.parametrize("name", TOLD)
def test_what_is_not_so_is_told_at_once(name, kind):
    act, match = TOLD[name]
    lies, told, pruner = run(plain(adam, act), kind)
    assert not lies and len(told) == 1 and match in told[0]
    if kind is PruneHandler and "any more" in match:
        assert not pruner.check() and pruner.check().replaced and "any more" in str(pruner.check())


def test_strict_raises_where_a_parameter_was_replaced():
    with pytest.raises(PrunedWeightsAlive, match=r"3\.weight any more"):
        run(plain(adam, exchange), strict=True)


@pytest.mark.parametrize("scaled", [False, True])
def test_ignites_own_trainer_with_a_scaler_and_accumulated_gradients(scaled):
    model = net()
    optimizer = adam(model)
    options = {"amp_mode": "amp", "scaler": torch.amp.GradScaler("cpu", init_scale=8.0)} if scaled else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Ignite's autocast is that of CUDA
        trainer = create_supervised_trainer(
            model, optimizer, nn.functional.cross_entropy, gradient_accumulation_steps=3, **options
        )
        pruner = PruneHandler(model, optimizer, strict=True)
        pruner.step(0.6)
        pruner.attach(trainer)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: found.append(bool(pruner.check())))
        found = []
        trainer.run(DATA, max_epochs=1)
    assert found == [True] * len(DATA) and trainer.state.sparsity["global"] == pruner.sparsity
