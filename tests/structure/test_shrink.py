"""Law 11: a shrunk model equals its masked model; what hangs on it is cut alike, or everything is put back."""

import copy
from dataclasses import dataclass

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from ignite_prune import PruneHandler, allocation, pattern, saliency, schedule
from ignite_prune.handlers import ShrinkHandler
from ignite_prune.structure import declare, load_shrunk, shrink, shrunk_state, slice_, trace
from tests.models import Net
from tests.structure.zoo import MODELS, Residual, image


def halved(structure, seed=0):
    """Return half the units of every group, at random."""
    dice, kept = torch.Generator().manual_seed(seed), {}
    for group in structure:
        kept[group.name] = torch.ones(group.size, dtype=torch.bool)
        kept[group.name][torch.randperm(group.size, generator=dice)[: group.size // 2]] = False
    return kept


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@torch.no_grad()
def masked(model, masks):
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.mul_(masks[name])
    return model


@torch.no_grad()
def counted(model, x):
    """Return torch's count of the floating-point operations."""
    counter, trains = FlopCounterMode(display=False), model.training
    with sdpa_kernel(SDPBackend.MATH), counter:
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()(x)
    torch.backends.mha.set_fastpath_enabled(True)
    model.train(trains)
    return counter.get_total_flops()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
}


@pytest.mark.parametrize("name", MODELS)
def test_shrunk_equals_masked(name):
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model.double().train()
    keys, kind = list(model.state_dict()), type(model)
    structure = trace(model, x)
    assert model.training and len(structure) and not structure.unknown, structure
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    for _ in range(2):
        step(model, optimizer, x)
    kept = halved(structure)
    masks = structure.masks(kept)
    twin = masked(copy.deepcopy(model), masks).eval()
    masked(model, masks)
    whole = counted(model, x)
    report = shrink(model, masks, x, optimizer=optimizer)
    left = structure.sliced(kept)
    assert report.parameters == (structure.parameters(), structure.parameters(kept))
    assert report.flops == (whole, counted(model, x)) == (structure.flops(), structure.flops(kept))
    assert report.flops[1] == left.flops() and report.parameters[1] == left.parameters() < report.parameters[0]
    assert {n: t.shape for n, t in model.named_parameters()} == {n: left.shapes[n] for n, _ in model.named_parameters()}
    torch.testing.assert_close(model.eval()(x), twin(x), rtol=1e-10, atol=1e-10)
    assert list(model.state_dict()) == keys and type(model) is kind
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
    model.train()
    before = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer, x)
    assert sum(not torch.equal(p, q) for p, q in zip(model.parameters(), before)) > len(before) // 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sliced_training_is_masked_training(name):
    """A model without norms over units goes on as its masked self does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    structure = trace(model, x)
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        step(model, optimizer, x)
    kept = halved(structure)
    masks = structure.masks(kept)
    if name == "Adafactor":  # its factors are means over rows and columns, zeros included
        masked(model, masks)
        shrink(model, masks, x, optimizer=optimizer)
        step(model, optimizer, x)
        return
    twin = copy.deepcopy(model)
    twin_optimizer = OPTIMIZERS[name](twin.parameters())
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    PruneHandler(twin, twin_optimizer, "*", masks=masks)
    shrink(masked(model, masks), masks, x, optimizer=optimizer)
    for _ in range(3):
        step(model, optimizer, x)
        step(twin, twin_optimizer, x)
    torch.testing.assert_close(model(x), twin(x), rtol=1e-10, atol=1e-12)


def test_units_by_hand():
    torch.manual_seed(0)
    model, x = Residual().double(), image()
    structure = trace(model, x)
    twin = copy.deepcopy(model)
    report = shrink(model, {"first.weight": [0, 5], "second.weight": [7]}, x)  # the residual's units by their other end
    assert report.units == {"stem.weight": (8, 7), "first.weight": (16, 14)}
    kept = {"stem.weight": torch.arange(8) != 7, "first.weight": ~torch.isin(torch.arange(16), torch.tensor([0, 5]))}
    torch.testing.assert_close(model.eval()(x), masked(twin, structure.masks(kept)).eval()(x), rtol=1e-10, atol=1e-10)
    for bad, kind, why in (
        ({"first.weight": [16]}, ValueError, "no unit 16"),
        ({"first.weight": [-1]}, ValueError, "no unit -1"),
        ({"frist.weight": [1]}, ValueError, "'first.weight'"),
        ({"first.weight": [0.5]}, TypeError, "whole numbers"),
        ({"first.weight": range(16)}, ValueError, "would be empty"),
    ):
        with pytest.raises(kind, match=why):
            shrink(twin, bad, x)
    assert twin.first.out_channels == 16


def test_one_module_and_one_parameter():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    optimizer, x = OPTIMIZERS["AdamW"](model.parameters()), torch.randn(2, 3, 9, 9)
    step(model, optimizer, x)
    whole = copy.deepcopy(model)
    slots = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}
    stay = [0, 3, 4]
    slice_(model[0], {"weight": {0: stay}, "bias": {0: stay}}, optimizer=optimizer)
    slice_(
        model[1], {name: {0: stay} for name in ("weight", "bias", "running_mean", "running_var")}, optimizer=optimizer
    )
    slice_(model[2], {"weight": {1: stay}}, optimizer=optimizer)
    assert torch.equal(model[2].weight, whole[2].weight[:, stay]) and torch.equal(
        model[1].running_var, whole[1].running_var[stay]
    )
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], slots["0.weight"][stay])
    assert (model[0].out_channels, model[1].num_features, model[2].in_channels) == (3, 3, 3)
    step(model, optimizer, x)
    before = copy.deepcopy(model)
    for bad, kind in (
        ({"weigth": {0: [0]}}, ValueError),
        ({"weight": {4: [0]}}, ValueError),
        ({"weight": {0: [3]}}, ValueError),
        ({"weight": {0: [0.5]}}, TypeError),
    ):
        with pytest.raises(kind):
            slice_(model[0], bad)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters()))


def dropping():
    torch.manual_seed(0)
    first, second, third = (nn.Dropout(rate) for rate in (0.4, 0.5, 0.2))
    layers = nn.Linear(6, 8), first, nn.Linear(8, 10), nn.ReLU(), second, nn.Linear(10, 3), third
    return nn.Sequential(*layers).double()


def test_dropout_follows_where_it_is_asked_to():
    x, rates = torch.randn(4, 6, dtype=torch.float64), []
    for scale in (False, True):
        model = dropping()
        structure = trace(model, x)
        kept = {"0.weight": torch.arange(8) < 2, "2.weight": torch.arange(10) < 4}
        shrink(masked(model, structure.masks(kept)), structure.masks(kept), x, structure=structure, scale_dropout=scale)
        rates.append((model[1].p, model[4].p, model[6].p))
    assert rates == [(0.4, 0.5, 0.2), (0.1, 0.2, 0.2)]
    loaded = load_shrunk(dropping(), shrunk_state(model, structure.indices(kept)))
    assert (loaded[1].p, loaded[4].p, loaded[6].p) == rates[1]
    with pytest.raises(ValueError, match="no Dropout"):
        load_shrunk(dropping(), {**shrunk_state(model, structure.indices(kept)), "rates": {"2": 0.5}})


def test_dropout_resumes():
    def shrinker(model):
        pruner = PruneHandler(model, structure=trace(model, x), allocation=allocation.Uniform())
        return pruner, ShrinkHandler(pruner, x, scale_dropout=True)

    x, model, fresh = torch.randn(4, 6, dtype=torch.float64), dropping(), dropping()
    pruner, handler = shrinker(model)
    for sparsity in (0.5, 0.75):
        pruner.step(sparsity)
        handler.shrink()
    assert (model[1].p, model[4].p) == pytest.approx((0.4 / 4, 0.5 / 10 * 2))
    shrinker(fresh)[1].load_state_dict(handler.state_dict())
    assert (fresh[1].p, fresh[4].p, fresh[6].p) == (model[1].p, model[4].p, model[6].p)


def test_what_hangs_on_the_model():
    torch.manual_seed(0)
    model, x, calls = Residual().double(), image(), []
    model.head.weight.requires_grad_(False)
    model.first.register_forward_hook(lambda *_: calls.append(1))
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = OPTIMIZERS["SGD"]([p for p in model.parameters() if p.requires_grad])
    model(x).sum().backward()
    structure = trace(model, x)
    masks = structure.masks(halved(structure))
    shrink(masked(model, masks), masks, x, optimizer=optimizer, ema=average.module)
    assert not model.head.weight.requires_grad and model.first.weight.requires_grad
    assert model.first.weight.grad.shape == model.first.weight.shape == average.module.first.weight.shape
    assert (model.first.in_channels, model.first.out_channels, model.norm1.num_features) == (4, 8, 8)
    assert calls and average(x).shape == (2, 5)
    average.update_parameters(model)


def test_everything_is_put_back_where_it_cannot_be():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.size = nn.Linear(4, 8), nn.Linear(8, 2), 8

        def forward(self, x):
            y = self.first(x)
            if y.shape[-1] != self.size:
                raise RuntimeError("the width is 8")
            return self.second(y)

    model, x = Stubborn(), torch.randn(3, 4)
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    step(model, optimizer, x)
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    state = {p: optimizer.state[p]["exp_avg"] for p in parameters}
    assert not len(trace(model, x)), "a trial finds it"
    structure = declare(model, [{"first.weight": 0, "first.bias": 0, "second.weight": 1}])
    masks = structure.masks(halved(structure))
    with pytest.raises(ValueError, match="put back: the width is 8"):
        shrink(model, masks, x, optimizer=optimizer, structure=structure)
    assert all(p is q for p, q in zip(model.parameters(), parameters)) and model.first.out_features == 8
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert all(optimizer.state[p]["exp_avg"] is state[p] for p in parameters)
    step(model, optimizer, x)


def test_refusals():
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    structure = trace(model, x)
    with pytest.raises(ValueError, match="whole units"):
        mask = torch.ones_like(model.first.weight, dtype=torch.bool)
        mask[0, 0, 0, 0] = False
        shrink(model, {"first.weight": mask}, x)
    with pytest.raises(ValueError, match="would be empty"):
        shrink(model, structure.masks({"first.weight": torch.zeros(16, dtype=torch.bool)}), x)
    with pytest.raises(ValueError, match="none of the model's parameters"):
        masks = structure.masks(halved(structure))
        shrink(model, masks, x, optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))
    with pytest.raises(TypeError, match="example_inputs"):
        trace(model, 3)
    with pytest.raises(ValueError, match="does not run with them"):
        trace(model, torch.randn(2, 4, 8, 8))
    with pytest.raises(ValueError, match="another model"):
        PruneHandler(nn.Linear(2, 2), structure=structure)
    with pytest.raises(ValueError, match="go together"):
        PruneHandler(model, pattern=pattern.Coupled())
    with pytest.raises(TypeError, match="structure should be what trace"):
        PruneHandler(model, structure=x)


# With an engine


def batches(n=4):
    dice = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 3, 8, 8, generator=dice, dtype=torch.float64), torch.randint(5, (4,), generator=dice))
        for _ in range(n)
    ]


def build(formula):
    torch.manual_seed(0)
    model = Residual().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)
    structure = trace(model, image())
    plan = schedule.Linear(0.75, begin=0, end=6)
    pruner = PruneHandler(
        model, optimizer, structure=structure, saliency=formula, schedule=plan, allocation=allocation.Uniform()
    )
    pruner.attach(trainer, Events.EPOCH_COMPLETED)
    shrinker = ShrinkHandler(pruner, image())
    shrinker.attach(trainer, Events.EPOCH_COMPLETED(every=2))
    return trainer, shrinker.to_save(model=model, optimizer=optimizer, pruner=pruner, trainer=trainer)


FORMULAS = [saliency.Magnitude(), saliency.Taylor(), saliency.Random()]


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: type(f).__name__)
def test_schedule_counts_the_units_there_were(formula):
    trainer, objects = build(formula)
    trainer.run(batches(), max_epochs=8)
    model = objects["model"]
    assert (model.stem.out_channels, model.first.out_channels) == (2, 4)
    assert len(objects["shrinker"].reports) == 4 and objects["pruner"].masks.sparsity > 0.9
    assert objects["pruner"].units == {"stem.weight": (8, 2), "first.weight": (16, 4)}


def test_keep_and_tie():
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    assert list(trace(model, x, keep=["first"]).groups) == ["stem.weight"]
    assert list(trace(model, x, keep="second").groups) == ["first.weight"]
    pair = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)])
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    structure = trace(model, torch.randn(2, 3), tie=[("0.weight", "1.weight")])
    assert [group.size for group in structure] == [4] and len(pair) == 2
    kept = {"0.weight": torch.tensor([True, False, True, False])}
    shrink(masked(model, structure.masks(kept)), structure.masks(kept), torch.randn(2, 3))
    assert model[1].weight.shape == (2, 2)
    for wrong, error in (
        ({"keep": ["nothing"]}, "matches no parameter"),
        ({"tie": [("0.weight", "0.weight[1]")]}, "one size"),
    ):
        with pytest.raises(ValueError, match=error):
            trace(model, torch.randn(2, 3), **wrong)


def test_declared_by_hand():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            y = self.first(x)
            return self.second(y if y.sum() > 0 else -y)

    model, x = Branching().double(), torch.randn(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="cannot be exported"):
        trace(model, x)
    structure = declare(model, [{"first.weight": 0, "first.bias": 0, "second.weight": 1}])
    masks = structure.masks(halved(structure))
    report = shrink(masked(model, masks), masks, x, structure=structure)
    assert report.error < 1e-12 and model.first.out_features == 4
    forgotten = declare(model, [{"first.weight": 0, "second.weight": 1}])
    with pytest.raises(ValueError, match=r"put back: .* \(in first\)"):
        shrink(model, forgotten.masks(halved(forgotten)), x, structure=forgotten)
    for wrong, error in (([{"first.weight": 0, "second.weight": 0}], "one size"), ([{"third": 0}], "no parameter")):
        with pytest.raises(ValueError, match=error):
            declare(model, wrong)


def test_saved_and_loaded(tmp_path):
    model, x = Residual().double(), image()
    masks = (structure := trace(model, x)).masks(halved(structure))
    report = shrink(masked(model, masks), masks, x)
    torch.save(shrunk_state(model, report.indices), tmp_path / "small.pt")
    fresh = load_shrunk(Residual().double(), tmp_path / "small.pt")
    assert torch.equal(fresh.eval()(x), model.eval()(x)) and fresh.first.out_channels == 8
    with pytest.raises(ValueError, match="another model"):
        load_shrunk(nn.Linear(2, 2), tmp_path / "small.pt")
    with pytest.raises(ValueError, match="full size"):
        load_shrunk(fresh, tmp_path / "small.pt")
    with pytest.raises(TypeError, match="should hold"):
        load_shrunk(fresh, {})


@dataclass
class Record:
    logits: torch.Tensor


def over_its_mean(s, x):
    h = torch.relu(s.a(x))
    return s.b(h / h.mean(-1, keepdim=True))


NOT_SEEN_BY_A_NAIVE_CHECK = {
    "infinite logits": lambda s, x: torch.cat([over_its_mean(s, x), torch.full((4, 1), -torch.inf)], 1),
    "a record": lambda s, x: Record(over_its_mean(s, x)),
    "complex": lambda s, x: torch.complex(over_its_mean(s, x), over_its_mean(s, x)),
    "in training alone": lambda s, x: s.b(torch.relu(s.a(x)) @ torch.eye(8)[:, :] if s.training else s.a(x)),
}


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (dtype, kind)
        for dtype in (torch.float32, torch.bfloat16)
        for kind in NOT_SEEN_BY_A_NAIVE_CHECK
        if dtype == torch.float32 or kind not in ("complex", "in training alone")
    ],
)
def test_what_differs_is_put_back(kind, dtype):
    torch.manual_seed(0)
    model = Net(NOT_SEEN_BY_A_NAIVE_CHECK[kind], a=nn.Linear(6, 8), b=nn.Linear(8, 3)).to(dtype).train()
    x = torch.rand(4, 6).to(dtype)
    structure = declare(model, [{"a.weight": 0, "a.bias": 0, "b.weight": 1}])
    masks = structure.masks({"a.weight": torch.arange(8) % 2 == 0})
    named = r"\(in the forward of Net\)|differs is 'b'" if kind in ("in training alone", "infinite logits") else ""
    with pytest.raises(ValueError, match=f"put back.*({named})"):
        shrink(model, masks, x, structure=structure)
    assert model.a.out_features == 8


FROZEN = {
    "norm over units": lambda: (
        nn.Linear(6, 8),
        nn.BatchNorm1d(5),
        torch.randn(4, 5, 6),
        lambda s, x: s.b(s.n(s.a(x))),
    ),
    "positions of a convolution": lambda: (
        nn.Linear(6, 8),
        nn.Conv1d(5, 5, 3, padding=1),
        torch.randn(4, 5, 6),
        lambda s, x: s.b(s.n(s.a(x))),
    ),
    "a mean": lambda: (nn.Linear(6, 8), nn.Identity(), torch.randn(4, 6), lambda s, x: s.a(x).mean(1, keepdim=True)),
    "a sum of what is not 0": lambda: (
        nn.Linear(6, 8),
        nn.Sigmoid(),
        torch.randn(4, 6),
        lambda s, x: s.n(s.a(x)).sum(1, keepdim=True),
    ),
    "two activations, scaled by their width": lambda: (
        nn.Linear(6, 8),
        nn.Linear(6, 8),
        torch.randn(4, 6),
        lambda s, x: s.a(x) @ s.n(x).t() / s.a(x).shape[1] ** 0.5,
    ),
    "a cut at a written size": lambda: (
        nn.Linear(6, 8),
        nn.Identity(),
        torch.randn(4, 6),
        lambda s, x: torch.cat([s.a(x)[:, :4] * 2, s.a(x)[:, 4:]], 1),
    ),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_what_cannot_be_exact_is_frozen(kind):
    a, n, x, function = FROZEN[kind]()
    assert "a.weight" not in trace(Net(function, a=a, n=n, b=nn.Linear(8, 3)), x).groups


def test_a_learnt_initial_state_goes_with_its_units():
    def function(s, x):
        return s.out(s.rnn(x, s.start.expand(-1, len(x), -1).contiguous())[0])

    model = Net(function, rnn=nn.GRU(6, 8, batch_first=True), out=nn.Linear(8, 3)).double()
    model.start = nn.Parameter(torch.randn(1, 1, 8, dtype=torch.float64))
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    structure = trace(model, x)
    assert len(structure) == 1
    masks = structure.masks(halved(structure))
    assert shrink(masked(model, masks), masks, x).error < 1e-10 and model.start.shape == (1, 1, 4)


class Counting(nn.Module):
    """Attention of a number of heads that its shapes do not tell; it counts its calls."""

    def __init__(self, heads):
        super().__init__()
        self.size, self.calls = 8 // heads, 0
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def count(self):
        self.calls += 1

    def forward(self, x):
        self.count()
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.size)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_model_of_another_size_of_heads_is_not_loaded():
    model, x = nn.Sequential(nn.Linear(4, 8), Counting(4)).double().eval(), torch.randn(2, 3, 4).double()
    structure = trace(model, x)
    kept = {each.name: torch.arange(each.size) < each.size - 2 for each in structure if "qkv" in each.name}
    state = shrunk_state(model, shrink(model, structure.masks(kept), x).indices)
    assert len(state["left"]) == 3 and model[1].calls > 0
    assert torch.equal(load_shrunk(nn.Sequential(nn.Linear(4, 8), Counting(4)).double(), state)(x), model(x))
    fresh = nn.Sequential(nn.Linear(4, 8), Counting(2)).double()
    with pytest.raises(ValueError, match=r"size of '1' is 4, but 2 in the saved model"):
        load_shrunk(fresh, state)
    assert fresh[1].qkv.out_features == 24 and fresh[1].qkv.weight.shape == (24, 8)


def test_names_that_are_not_there_and_failed_loads():
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="no parameter 'first.wieght'"):
        shrink(model, {"first.wieght": torch.zeros(1, dtype=torch.bool)}, x)
    structure = trace(model, x)
    masks = structure.masks(halved(structure))
    state = shrunk_state(model, shrink(masked(model, masks), masks, x).indices)
    state["model"] = {name: each for name, each in state["model"].items() if name != "stem.bias"}
    fresh = Residual()
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(ValueError, match="do not fit"):
        load_shrunk(fresh, state)
    assert all(torch.equal(fresh.state_dict()[name], each) for name, each in before.items())


def test_lbfgs_goes_on():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(3, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    structure = trace(model, x)
    masks = structure.masks(halved(structure))
    shrink(masked(model, masks), masks, x, optimizer=optimizer)
    before = closure().item()
    optimizer.step(closure)
    assert closure().item() < before


class Flat(torch.optim.SGD):
    """Keeps a number for each entry of all parameters in a tensor of its own, which no slicing finds."""

    def __init__(self, parameters):
        super().__init__(parameters, 0.1)
        self.all = torch.zeros(sum(each.numel() for each in self.param_groups[0]["params"]))

    def step(self, closure=None):
        self.all += torch.cat([each.grad.flatten() for each in self.param_groups[0]["params"]])
        return super().step(closure)


def test_an_optimizer_that_no_longer_steps_is_found_out():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    optimizer = Flat(model.parameters())
    with pytest.raises(ValueError, match="does not fit Flat, so it was put back.*size of tensor"):
        shrink(model, {"0.weight": [0, 1]}, x, optimizer=optimizer)
    assert model[0].out_features == 8 and float(optimizer.all.abs().sum()) == 0
    model(x).sum().backward()
    optimizer.step()


def test_a_trial_step_changes_nothing():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # replaces optimizer.step
    model(x).sum().backward()
    optimizer.step()
    before = model[2].bias.detach().clone(), optimizer.state[model[2].bias]["step"].clone()
    shrink(model, {"0.weight": [0, 1]}, x, optimizer=optimizer)
    assert torch.equal(model[2].bias, before[0]) and torch.equal(optimizer.state[model[2].bias]["step"], before[1])


@pytest.mark.parametrize("is_attached", [False, True])
def test_the_pruner_goes_on_with_the_sliced_model(is_attached):
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)
    optimizer = torch.optim.Adam(model.parameters())
    pruner = PruneHandler(model, optimizer, structure=trace(model, x), strict=True)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    if is_attached:
        pruner.attach(trainer)
    pruner.step(0.5)
    assert shrink(model, pruner, x).units == {"0.weight": (16, 8)}
    pruner.step(0.75)
    trainer.run([(torch.randn(4, 8), torch.randint(4, (4,)))], max_epochs=1)
    assert pruner.check() and pruner.units == {"0.weight": (16, 4)} and pruner.sparsity == 0.75
    pruner.state_dict()
    pruner.finalize()
    assert shrink(model, pruner, x).units == {"0.weight": (8, 4)}
