"""ActivationSparsity behind functional activations, and inside autocast, checkpoints, compiled and exported models."""

import math

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.utils.checkpoint import checkpoint

from ignite_prune import PruneHandler, pattern, saliency, schedule
from ignite_prune.activation import KWinners, KWinners2d, Learnt, Lifetime, TopK
from ignite_prune.activation.row_top_k import top_of_rows
from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.handlers import ActivationSparsity
from tests.activation.test_handler import hooks_of
from tests.models import assert_same_bits, assert_zero, batches, small_net


class Functional(nn.Module):
    """Layers whose nonlinearities stand in ``forward``; the code may be the model's result."""

    def __init__(self, code=False):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc, self.out = nn.Linear(128, 16), nn.Linear(16, 4)
        self.code = code

    def forward(self, x):
        x = nn.functional.relu_(self.bn(self.conv(x)))
        x = nn.functional.avg_pool2d(x, 2).flatten(1)
        x = torch.tanh(self.fc(x))
        return x if self.code else self.out(x)


def test_functional_activations_become_sparse():
    torch.manual_seed(0)
    model = Functional(code=True)
    handler = ActivationSparsity(
        model, {"conv": KWinners2d(k=20, positive=True), "fc": KWinners(3)}, after_activation=True
    )
    handler.install()
    seen = []
    model.fc.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    y = model(batches()[0][0])
    assert (y != 0).sum(1).tolist() == [3] * 6 and ((seen[0] != 0).sum(1) <= 20).all()
    y.square().sum().backward()
    fired = (y != 0).any(0)
    assert model.fc.weight.grad[fired].any() and not model.fc.weight.grad[~fired].any()
    handler.detach()
    assert hooks_of(model) == 1, "the test's own"


class HandMade(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def in_training(act):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(act(self.fc(x)))

    model = Net()
    handler = ActivationSparsity(model, {"fc": KWinners(2)}, after_activation=True)
    handler.install()
    return model, handler


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda x: x * torch.sigmoid(x), "used by mul"),
        (lambda x: x + torch.relu(x), "used by add"),
        (lambda x: torch.cat([torch.relu(x), torch.relu(-x)], 1)[:, :8], "used by neg"),
        (lambda x: torch.relu(x + torch.randn(1, 8).expand(2, 8)), "No activation function follows layer 'fc'"),
        (lambda x: HandMade.apply(x), "runs without gradients"),
        (lambda x: x, "No activation function follows layer 'fc'"),
        (lambda x: torch.where(x > 0, x, 0.0), "No activation function follows layer 'fc'"),
    ],
)
def test_what_is_ambiguous_raises(act, words):
    model, _ = in_training(act)
    for _ in range(2):
        with pytest.raises(ValueError, match=words):
            model(torch.randn(2, 5))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_evidence_is_of_the_sparse_activation(first, after):
    torch.manual_seed(0)
    model, seen = Functional(), []
    watch = ForwardObserver().subscribe(
        {"fc.weight": model.fc.weight}, on_activation=lambda name, z, *_: seen.append(z)
    )
    handler = ActivationSparsity(model, {"fc": KWinners(3)}, after_activation=after)
    if first:
        handler.install()
    with watch.installed(model):
        if not first:
            handler.install()
        model(batches()[0][0])
    (z,) = seen
    assert z.requires_grad and z.shape == (6, 16) and ((z != 0).sum(1) == 3).all()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_beside_a_pruner_that_reads_activations(first, after):
    torch.manual_seed(0)
    model = Functional()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    handler = ActivationSparsity(
        model, {"conv": KWinners2d(density=0.3), "fc": TopK(Learnt(0.5))}, after_activation=after
    )
    if first:
        handler.attach(trainer)
    pruner = PruneHandler(
        model,
        optimizer,
        ["conv.weight", "fc.weight"],
        saliency=saliency.ActivationTaylor(),
        pattern=pattern.Channel(),
        schedule=schedule.OneShot(0.5, at=2),
    )
    pruner.attach(trainer)
    if not first:
        handler.attach(trainer)
    trainer.run(batches(), max_epochs=3)
    assert pruner.sparsity > 0.4
    assert_zero(pruner, optimizer)


def test_a_layer_used_twice_is_sparse_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return torch.relu(self.fc(torch.relu(self.fc(x))))

    model = Twice()
    handler = ActivationSparsity(model, {"fc": TopK(5)}, after_activation=True)
    handler.install()
    assert ((model(torch.rand(4, 6)) != 0).sum(1) <= 1).all() and int(handler.sparsifiers["fc"].seen) == 8
    with torch.no_grad():
        model.eval()(torch.rand(4, 6))


def test_a_layer_that_runs_unwatched_raises():
    model, handler = in_training(torch.relu)
    with pytest.raises(ValueError, match="'fc' runs outside its model's forward"):
        model.fc(torch.randn(2, 5))
    handler.detach()

    class Checked(nn.Module):
        def __init__(self, part, reentrant):
            super().__init__()
            self.part, self.reentrant = part, reentrant

        def forward(self, x):
            return checkpoint(lambda z: torch.relu(self.part.fc(z)), x, use_reentrant=self.reentrant)

    for reentrant in (False, True):
        checked = Checked(model, reentrant)
        handler = ActivationSparsity(checked, {"part.fc": TopK(0.5)}, after_activation=True)
        handler.install()
        with pytest.raises(ValueError, match="again in backward"):
            checked(torch.randn(2, 5, requires_grad=True)).sum().backward()
        handler.detach()


def test_checkpointed_layers():
    # On a layer's own output what is computed again is the same, and counted once; a boost has moved on.
    def run(sparsifier, recomputed):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        handler = ActivationSparsity(model, {"0": sparsifier})
        handler.install()
        x = torch.randn(4, 5, requires_grad=True)
        y = checkpoint(model, x, use_reentrant=False) if recomputed else model(x)
        y.square().sum().backward()
        return model[0].weight.grad, dict(handler.sparsifiers["0"].state_dict())

    for make in (lambda: TopK(0.5), lambda: KWinners(2, boost=0), lambda: Lifetime(0.5)):
        assert_same_bits(run(make(), True), run(make(), False))
    with pytest.raises(ValueError, match="duty cycles have moved on"):
        run(KWinners(2), True)


@pytest.mark.parametrize("after", [False, True])
def test_autocast_and_channels_last(after):
    torch.manual_seed(0)
    model = Functional().to(memory_format=torch.channels_last)
    handler = ActivationSparsity(model, {"conv": KWinners2d(k=20), "fc": KWinners(3)}, after_activation=after)
    trainer = create_supervised_trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.01), nn.functional.cross_entropy
    )
    seen = []
    model.out.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    handler.attach(trainer)
    data = [(x.to(memory_format=torch.channels_last), t) for x, t in batches()]
    with torch.autocast("cpu", torch.bfloat16):
        trainer.run(data, max_epochs=1)
    assert seen[0].dtype == torch.bfloat16 and all(((z != 0).sum(1) == 3).all() for z in seen)
    assert math.isfinite(trainer.state.output) and handler.sparsifiers["conv"].duty.dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
def test_compiled_models():
    def run(compiled):
        torch.manual_seed(0)
        model = small_net()
        handler = ActivationSparsity(model, {"0": KWinners2d(density=0.2), "5": TopK(0.5)})
        handler.install()
        called = torch.compile(model, backend="aot_eager") if compiled else model
        results = []
        for x, target in batches(3):
            loss = nn.functional.cross_entropy(called(x), target)
            loss.backward()
            results.append(loss.detach())
        return torch.stack(results), model[0].weight.grad, handler.sparsifiers["0"].duty

    for a, b in zip(run(True), run(False)):
        torch.testing.assert_close(a, b)
    model = small_net()
    with pytest.raises(ValueError, match="is compiled"):
        ActivationSparsity(torch.compile(model, backend="eager"), {"0": TopK(0.5)}, after_activation=True)
    handler = ActivationSparsity(model, {"0": TopK(0.5)}, after_activation=True)
    handler.install()
    with pytest.raises(ValueError, match="runs outside its model's forward"):
        torch.compile(model, backend="eager")(batches()[0][0])


def test_export_holds_the_sparsifier():
    model = small_net()
    handler = ActivationSparsity(model, {"5": KWinners(3)})
    handler.install()
    x = batches()[0][0]
    model(x)
    program = torch.export.export(model.eval(), (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    assert set(program.state_dict) == set(model.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_breaks_ties_alike():
    torch._dynamo.reset()
    compiled = torch.compile(top_of_rows, backend="eager")
    for _ in range(3):
        x = torch.randint(0, 4, (20, 9)).float()
        x[torch.rand(20, 9) < 0.05] = torch.nan
        assert torch.equal(compiled(x, 4), top_of_rows(x, 4)) and (top_of_rows(x, 4).sum(1) == 4).all()


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_was_compiled_and_run_before_raises():
    torch._dynamo.reset()
    model = small_net()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = create_supervised_trainer(compiled, optimizer, nn.functional.cross_entropy)
    trainer.run(batches(2), max_epochs=1)
    ActivationSparsity(compiled, {"5": TopK(0.5)}).attach(trainer)
    with pytest.raises(ValueError, match="has run in no forward .* was compiled before"):
        trainer.run(batches(2), max_epochs=3)
