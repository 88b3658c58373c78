"""What a hostile reviewer found, each as it was found."""

import copy

import pytest
import torch
from ignite.engine import Events, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, ShrinkHandler, allocation, prune_model, saliency, schedule, shrink, trace
from ignite_prune.structure import Flops, Latency, declare
from ignite_prune.update import sliced_pruner
from tests.models import Net
from tests.structure.test_shrink import halved, masked


def mlp(*widths):
    layers = [layer for i, o in zip(widths, widths[1:]) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def shrinks(model, x, **options):
    """Half of the units go, and what is left computes the same."""
    torch.manual_seed(0)
    model.double()
    structure = trace(model, x, **options)
    masks = structure.masks(halved(structure))
    assert shrink(masked(model, masks), masks, x, structure=structure).error < 1e-12
    return structure


X = torch.randn(3, 6, dtype=torch.float64)


def crossing():
    """Two groups of units whose first maker is one weight."""
    return Net(
        lambda net, x: net.o(torch.relu(net.short(x) + torch.cat([net.b1(x), net.b2(x)], 1))),
        short=nn.Conv2d(3, 16, 1),
        b1=nn.Conv2d(3, 8, 1),
        b2=nn.Conv2d(3, 8, 1),
        o=nn.Conv2d(16, 2, 1),
    )


def test_two_groups_made_by_one_weight_have_names_of_their_own():
    structure = shrinks(crossing(), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert {group.name: group.size for group in structure} == {"short.weight": 8, "b2.weight": 8}


@pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
@pytest.mark.parametrize("divided", [allocation.Global(min_density=0.05), allocation.Global(max_sparsity=0.95)])
def test_floors_over_many_slicings(divided):
    model, x = mlp(32, 24, 16, 2), torch.randn(2, 32)
    pruner = PruneHandler(model, structure=trace(model, x), allocation=divided, schedule=schedule.Linear(0.9, 0, 4))
    shrinker = ShrinkHandler(pruner, x)
    for step in range(1, 5):
        pruner.step(at=step)
        shrinker.shrink()
    assert sum(kept for _, kept in pruner.units.values()) == 4


FORMULAS = [saliency.OBS(block=4), saliency.APoZ(), saliency.Wanda(), saliency.SparseGPT(block=4)]


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: type(formula).__name__)
def test_evidence_lives_through_a_slicing(formula):
    torch.manual_seed(0)
    steps = schedule.Steps({2: 0.25, 4: 0.5})  # the first epoch has seen nothing
    model, data = mlp(6, 12, 8, 3), [(torch.randn(4, 6), torch.randint(3, (4,))) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    pruner = PruneHandler(model, optimizer, structure=trace(model, torch.randn(2, 6)), saliency=formula, schedule=steps)
    pruner.attach(trainer, Events.EPOCH_STARTED)
    ShrinkHandler(pruner, torch.randn(2, 6)).attach(trainer, Events.EPOCH_COMPLETED)
    trainer.run(data, max_epochs=4)
    assert sum(kept for _, kept in pruner.units.values()) == 10


def test_an_error_after_the_slicing_leaves_everything_whole(monkeypatch):
    model, x = mlp(6, 12, 3), torch.randn(2, 6)
    optimizer = torch.optim.Adam(model.parameters())
    pruner = PruneHandler(model, optimizer, structure=trace(model, x))
    pruner.step(0.5)
    shrinker = ShrinkHandler(pruner, x)

    def fails(*args):
        raise RuntimeError("no")

    monkeypatch.setattr(sliced_pruner, "sliced_pruner", fails)
    with pytest.raises(RuntimeError, match="no"):
        shrinker.shrink()
    monkeypatch.undo()
    assert model[0].out_features == 12 and pruner.pruning.enforcer.hooked and not shrinker.left
    shrinker.shrink()
    assert model[0].out_features == 6


def test_a_pruners_own_optimizers_and_structure_are_taken():
    model, x = mlp(6, 12, 3), torch.randn(2, 6)
    optimizer = torch.optim.Adam(model.parameters())
    pruner = PruneHandler(model, optimizer, structure=trace(model, x, keep=["2"]))
    pruner.step(0.5)
    shrink(model, pruner, x)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    with pytest.raises(ValueError, match="another model"):
        shrink(mlp(6, 12, 3), pruner, x)
    branching = Net(lambda net, x: net.b(net.a(x) if x.sum() > 0 else -net.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 2))
    structure = declare(branching, [{"a.weight": 0, "a.bias": 0, "b.weight": 1}])
    pruner = PruneHandler(branching, structure=structure)
    pruner.step(0.5)
    assert shrink(branching, pruner, x).units == {"a.weight": (8, 4)}


def test_masks_without_a_whole_unit_say_so():
    model, x = mlp(6, 12, 3), torch.randn(2, 6)
    with pytest.raises(ValueError, match="not made of whole units"):
        shrink(model, {"2.weight": torch.rand(3, 12) > 0.5}, x)
    frozen = Net(lambda net, x: net.b(net.a(x).softmax(-1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    with pytest.raises(ValueError, match="no whole unit"):
        shrink(frozen, {"a.weight": torch.arange(48).view(8, 6) > 20}, x)


def test_keep_keeps_what_a_layer_makes():
    x = torch.randn(2, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 8, 2, 2, bias=False), nn.Conv2d(8, 2, 1))
    assert set(trace(model, x, keep=["1"]).groups) == {"0.weight"}
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    assert set(trace(model, torch.tensor([[1, 2]]), keep=["0"]).groups) == {"1.weight"}
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    assert not len(trace(model, torch.tensor([[1, 2]]), keep=["*"]))


def test_flops_of_a_layer_over_positions():
    model = nn.Sequential(nn.Conv1d(3, 8, 1), nn.Linear(10, 10), nn.Conv1d(8, 2, 1)).double()
    x = torch.randn(2, 3, 10, dtype=torch.float64)
    structure = trace(model, x)
    masks = structure.masks(kept := halved(structure))
    report = shrink(masked(model, masks), masks, x, structure=structure)
    assert report.flops == (structure.flops(), structure.flops(kept))


STUBBORN = {
    "a tensor made in the forward": (
        lambda net, x: net.b(net.a(x * torch.arange(6.0, dtype=x.dtype)).view(-1, 8).relu()),
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3)},
    ),
    "a state of a written width": (
        lambda net, x: net.b(net.a(x[:, None], (torch.zeros(1, 3, 8).to(x),) * 2)[0][:, 0]),
        {"a": nn.LSTM(6, 8, batch_first=True), "b": nn.Linear(8, 3)},
    ),
    "another program in training": (
        lambda net, x: net.b(net.a(x).view(-1, 8) if net.training else net.a(x)),
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3)},
    ),
    "a weight that no mask makes 0": (
        lambda net, x: nn.functional.linear(net.a(x).sigmoid(), net.b.weight.sigmoid()),
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3)},
    ),
    "a norm by hand": (
        lambda net, x: net.b(net.a(x) / net.a(x).var(-1, unbiased=False, keepdim=True).sqrt()),
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3)},
    ),
}
GOES = {
    "a bound that is a tensor": (
        lambda net, x: net.b(torch.clamp(net.a(x), min=net.a.bias)),
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3)},
    ),
    "what nobody reads": (
        lambda net, x: (net.aux(net.a(x)), net.b(net.a(x)))[1],
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3), "aux": nn.Linear(8, 5)},
    ),
    "shared keys by hand": (
        lambda net, x: net.b(net.a(x).repeat_interleave(2, 1)),
        {"a": nn.Linear(6, 8), "b": nn.Linear(16, 3)},
    ),
}


@pytest.mark.parametrize("kind", STUBBORN)
def test_what_could_not_be_sliced_is_found_when_traced(kind):
    forward, layers = STUBBORN[kind]
    model = Net(forward, **copy.deepcopy(layers)).double()
    structure = trace(model, X)
    assert not {"a.weight", "a.weight_ih_l0"} & set(structure.groups), structure


@pytest.mark.parametrize("kind", GOES)
def test_what_can_go_goes(kind):
    forward, layers = GOES[kind]
    assert "a.weight" in shrinks(Net(forward, **copy.deepcopy(layers)), X).groups


def test_heads_with_a_mask_each_stay_and_the_rest_goes():
    model = Net(
        lambda net, x: net.out(net.inner(net.attend(x, x, x, attn_mask=torch.zeros(8, 5, 5).to(x))[0]).relu()),
        attend=nn.MultiheadAttention(16, 4, batch_first=True),
        inner=nn.Linear(16, 8),
        out=nn.Linear(8, 2),
    ).double()
    structure = shrinks(model, torch.randn(2, 5, 16, dtype=torch.float64))
    assert "inner.weight" in structure.groups and "attend.in_proj_weight" not in structure.groups


def test_a_structure_from_before_a_slicing_is_refused():
    model, x = mlp(6, 12, 8, 3), torch.randn(2, 6)
    structure = trace(model, x)
    shrink(model, {"0.weight": [0, 1]}, x, structure=structure)
    with pytest.raises(ValueError, match="trace it as it is now"):
        shrink(model, {"2.weight": [0]}, x, structure=structure)
    with pytest.raises(ValueError, match="of another model"):
        prune_model(model, sparsity=0.5, structure=structure)


def test_latency_of_another_model_is_refused():
    model, x = mlp(6, 12, 8, 3), torch.randn(2, 6)
    cost = Latency(copy.deepcopy(model), x, runs=1)
    pruner = PruneHandler(model, structure=trace(model, x), target=cost)
    shrinker = ShrinkHandler(pruner, x)
    pruner.param_groups[0]["target"] = None
    pruner.step(0.25)
    shrinker.shrink()
    with pytest.raises(ValueError, match="another model"):
        cost(pruner.structure, {})


@pytest.mark.parametrize("units", [torch.tensor([0, 3]), {0, 3}, (0, 3), range(0, 4, 3)])
def test_units_by_hand_in_any_form(units):
    model, x = mlp(6, 12, 3), torch.randn(2, 6)
    assert shrink(model, {"0.weight": units}, x).units == {"0.weight": (12, 10)}


def test_units_by_hand_in_no_form():
    model, x = mlp(6, 12, 3), torch.randn(2, 6)
    with pytest.raises(TypeError, match="as numbers"):
        shrink(model, {"0.weight": 3}, x)
    with pytest.raises(TypeError, match="bool masks alone"):
        shrink(model, {"0.weight": [3], "0.bias": torch.ones(12, dtype=torch.bool)}, x)


def test_what_users_note_on_parameters_and_how_they_lie_in_memory_stays():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)).to(memory_format=torch.channels_last)
    model[0].weight.no_decay = True
    shrink(model, {"0.weight": [0]}, torch.randn(1, 3, 8, 8))
    assert model[0].weight.no_decay and model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_flops_are_a_target_where_two_groups_share_a_weight():
    model, x = crossing(), torch.randn(2, 3, 4, 4)
    structure = trace(model, x)
    masks = prune_model(model, sparsity=0.25, structure=structure, target=Flops())
    report = shrink(model, masks, x, structure=structure)
    assert report.flops[1] <= 0.75 * report.flops[0]
