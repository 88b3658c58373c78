"""Units: the union-find and the reshapes against plain sets, counts that are exact, ranks that agree."""

import copy
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ignite_prune import (
    PruneHandler,
    ShrinkHandler,
    allocation,
    pattern,
    prune_model,
    saliency,
    schedule,
    score,
    shrink,
    trace,
)
from ignite_prune.structure import Flops, Latency, Parameters, declare
from ignite_prune.structure.tracing.reshape import reshaped
from ignite_prune.structure.tracing.traced_tensor import fixed
from ignite_prune.structure.tracing.unit_ids import UnitIds
from tests.ranks import on_two_ranks
from tests.structure.zoo import MODELS, Residual, image


@given(st.integers(0, 10**6))
def test_ties_are_those_of_plain_sets(seed):
    dice = random.Random(seed)
    units, n = UnitIds(), dice.randint(1, 20)
    ids = units.new(n)
    sets = {i: {i} for i in ids.tolist()}
    frozen = set()
    for _ in range(dice.randint(1, 8)):
        some = [dice.randint(1, n) for _ in range(dice.randint(1, n))]
        others = [dice.choice([0, dice.randint(1, n), dice.randint(1, n)]) for _ in some]
        units.tie(torch.tensor(some), torch.tensor(others))
        for i, j in zip(some, others):
            if j == 0:
                frozen |= sets[i]
            else:
                both = sets[i] | sets[j]
                sets.update(dict.fromkeys(both, both))
        if dice.random() < 0.2:
            units.freeze(torch.tensor(some), "by chance")
            frozen.update(*(sets[i] for i in some))
    found = units.find(ids).tolist()
    for i in ids.tolist():
        assert {j for j in ids.tolist() if found[j - 1] == found[i - 1]} == sets[i]
        assert bool(units.is_frozen(torch.tensor([i]))) == bool(sets[i] & frozen)


@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5), st.integers(0, 10**6))
def test_a_reshape_moves_units_as_it_moves_entries(atoms, seed):
    """A tensor whose entries are their unit's id, reshaped, holds the ids that the new dimensions have."""
    dice = random.Random(seed)

    def grouped():
        sizes, rest = [], list(atoms)
        while rest:
            taken = dice.randint(1, len(rest))
            sizes.append(math.prod(rest[:taken]))
            rest = rest[taken:]
        return sizes

    old, new = grouped(), grouped()
    units, moving = UnitIds(), dice.randrange(len(old))
    dims = tuple(units.new(size) if d == moving else fixed(size) for d, size in enumerate(old))
    free = dice.choice([None, *range(len(new))])
    made = reshaped(units, dims, new, free, "view")
    assert [len(dim) for dim in made] == new
    entries = dims[moving].view([-1 if d == moving else 1 for d in range(len(old))]).expand(old).reshape(new)
    entries = torch.where(units.is_frozen(entries), 0, units.find(entries))
    for dim, ids in enumerate(made):
        if not units.is_frozen(ids).all():
            here = units.find(ids).view([-1 if d == dim else 1 for d in range(len(new))]).expand(new)
            assert torch.equal(here, entries)
            break
    else:
        assert not entries.any()


@pytest.mark.filterwarnings("ignore:Of the groups of coupled units")  # untrained: a wide layer's scores are all alike
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("divided", [allocation.Uniform(), allocation.Global()], ids=["uniform", "global"])
def test_counts_are_exact_and_no_group_is_emptied(name, divided):
    torch.manual_seed(0)
    model, x = MODELS[name]()
    structure = trace(model.double(), x)
    masks = prune_model(model, sparsity=0.5, structure=structure, allocation=divided)
    kept = structure.kept(masks)  # made of whole units
    sizes = {group.name: group.size for group in structure if group.name in kept}
    left = {name: int(each.sum()) for name, each in kept.items()}
    assert min(left.values()) >= 1
    chosen = [each for each in structure if not kept[each.name].all()]
    assert chosen
    if isinstance(divided, allocation.Uniform):
        assert all(left[each.name] == sizes[each.name] - round(sizes[each.name] * 0.5) for each in chosen)
    for name, parameter in model.named_parameters():
        if name in masks:
            assert not parameter.detach()[~masks[name]].any()


@pytest.mark.parametrize("combine", ["mean", "sum", "max", "first"])
def test_scores_of_slices_come_together(combine):
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 6.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 9.0, 2.0]]))
    worth = {"mean": [3, 5, 4], "sum": [6, 10, 8], "max": [5, 9, 6], "first": [5, 1, 6]}[combine]
    structure = trace(model, torch.randn(1, 2))
    rule = pattern.Coupled(combine=combine)
    masks = prune_model(model, sparsity=1 / 3, structure=structure, pattern=rule)
    assert masks["0.weight"][:, 0].logical_not().nonzero().item() == worth.index(min(worth))


def test_round_to_and_at_least():
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 2))
    structure = trace(model, torch.randn(1, 4))
    rule = pattern.Coupled(round_to=8, at_least=3)
    masks = prune_model(model, sparsity=0.9, structure=structure, pattern=rule, allocation=allocation.Uniform())
    assert {name: int(each.sum()) for name, each in structure.kept(masks).items()} == {"0.weight": 8, "2.weight": 3}


def test_a_pattern_by_which_nothing_could_go_is_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"no group may lose a unit; they have \[8, 6\]"):
        PruneHandler(model, structure=trace(model, torch.randn(1, 4)), pattern=pattern.Coupled(round_to=8, at_least=6))


def test_unit_saliencies_and_evidence():
    torch.manual_seed(0)
    data = [(torch.randn(4, 3, 8, 8), torch.randint(5, (4,)))]
    for formula in (saliency.APoZ(), saliency.ActivationTaylor(), saliency.FPGM(), saliency.Taylor(), saliency.OBD()):
        model = Residual()
        structure = trace(model, torch.randn(1, 3, 8, 8))
        options = {"data": data, "loss_fn": nn.functional.cross_entropy, "allocation": allocation.Uniform()}
        masks = prune_model(model, sparsity=0.5, structure=structure, saliency=formula, **options)
        shrink(model, masks, torch.randn(1, 3, 8, 8))
        assert (model.stem.out_channels, model.first.out_channels) == (4, 8)


def on_a_rank(rank):
    torch.manual_seed(0)
    model = Residual().double()
    structure = trace(model, image())
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    pruner = PruneHandler(
        wrapped, optimizer, structure=structure, saliency=saliency.Taylor(), allocation=allocation.Uniform()
    )
    torch.manual_seed(rank)

    def step(net):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(image()), torch.randint(5, (2,))).backward()
        optimizer.step()

    for _ in range(3):
        step(wrapped)
    pruner.step(0.5)
    shrinker = ShrinkHandler(pruner, image())
    with pytest.raises(ValueError, match="wrapped in DDP"):
        shrinker.attach(Engine(lambda engine, batch: None))
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        shrink(wrapped, pruner, image())
    shrinker.shrink()
    wrapped = DistributedDataParallel(model)
    for _ in range(2):
        step(wrapped)
    return {name: each.tolist() for name, each in model.named_parameters()}


def test_ranks_shrink_alike():
    first, second = on_two_ranks(on_a_rank)
    assert first == second and len(first["first.weight"]) == 8


def test_compiled():
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    structure = trace(compiled, x)
    masks = prune_model(compiled, sparsity=0.5, structure=structure, allocation=allocation.Uniform())
    twin = copy.deepcopy(model).eval()
    shrink(compiled, masks, x)
    compiled.eval()
    torch.testing.assert_close(compiled(x), twin(x))
    assert model.first.out_channels == 8


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        q, k, v = (each(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for each in (self.query, self.key, self.value))
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(1, 2).flatten(2)).mean(1)


def test_heads_go_by_their_importance():
    torch.manual_seed(0)
    model, x = Attending(), torch.randn(3, 5, 16)
    structure = trace(model, x)
    assert [group.size for group in structure] == [4]
    data, loss_fn = [(x, torch.randint(16, (3,)))], nn.functional.cross_entropy
    scores = score(model, "*.weight", saliency=saliency.HeadImportance(), data=data, loss_fn=loss_fn)
    masks = prune_model(
        model,
        "*.weight",
        sparsity=0.5,
        structure=structure,
        saliency=saliency.HeadImportance(),
        data=data,
        loss_fn=loss_fn,
    )
    worst = set(scores["query.weight"].argsort()[:2].tolist())
    assert set((~masks["query.weight"]).view(4, 4, 16).all(2).all(1).nonzero().flatten().tolist()) == worst
    shrink(model, masks, x)
    assert model.query.out_features == 8 and model.out.in_features == 8


def test_another_pruners_masks_are_not_lost():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(3, 4)
    pruner = PruneHandler(model, optimizer, structure=trace(model, x))
    pruner.step(0.5)
    other = PruneHandler(model, optimizer, "0.weight", masks={"0.weight": torch.rand(8, 4) > 0.5})
    with pytest.raises(ValueError, match=r"'0.weight' has hooks of others"):
        ShrinkHandler(pruner, x).shrink()
    assert model[0].out_features == 8
    other.detach()
    ShrinkHandler(pruner, x).shrink()
    assert model[0].out_features == 4


COSTS = {"parameters": Parameters(), "FLOPs": Flops()}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", ["residual", "concat", "depthwise", "grouped", "U-Net", "encoder", "LSTM"])
@pytest.mark.parametrize("divided", [allocation.Uniform(), allocation.Global()], ids=["uniform", "global"])
def test_a_target_in_cost_is_reached_by_the_fewest_units(name, cost, divided):
    torch.manual_seed(0)
    model, x = MODELS[name]()
    structure = trace(model.double(), x)
    count = {"parameters": structure.parameters, "FLOPs": structure.flops}[cost]
    options = {"structure": structure, "allocation": divided, "inplace": False}
    kept = structure.kept(prune_model(model, sparsity=0.4, target=COSTS[cost], **options)[1])
    assert count(kept) <= 0.6 * count()
    units = sum(group.size for group in structure)
    gone = units - sum(int(each.sum()) for each in kept.values())
    for fewer in range(max(0, gone - 8), gone):  # of units asked for; each group is rounded by itself
        other = structure.kept(prune_model(model, sparsity=fewer / units, **options)[1])
        if sum(int(each.sum()) for each in other.values()) > units - gone:
            assert count(other) > 0.6 * count()


def test_a_target_goes_on_after_slicing_and_resumes():
    x = torch.randn(1, 3, 8, 8)

    def build():
        torch.manual_seed(0)
        model = Residual()
        pruner = PruneHandler(
            model, structure=trace(model, x), target=Flops(), schedule=schedule.Linear(0.8, begin=0, end=4)
        )
        return model, pruner, ShrinkHandler(pruner, x)

    model, pruner, shrinker = build()
    whole = pruner.structure.flops()
    for step in range(1, 5):
        pruner.step(at=step)
        shrinker.shrink()
        assert pruner.structure.flops() <= (1 - 0.2 * step) * whole
        if step == 2:
            other, again, cut = build()
            cut.load_state_dict(shrinker.state_dict())
            other.load_state_dict(model.state_dict())
            again.load_state_dict(pruner.state_dict())
    for step in (3, 4):
        again.step(at=step)
        cut.shrink()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_a_target_in_measured_time():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512)), torch.randn(256, 512)
    cost = Latency(model, x, runs=3)
    structure = trace(model, x)
    masks = prune_model(model, sparsity=0.5, structure=structure, target=cost)
    assert 1 <= int(structure.kept(masks)["0.weight"].sum()) < 2048
    with pytest.raises(ValueError, match="out of reach"):
        prune_model(model, sparsity=0.9999, structure=structure, target=cost)


def test_bad_targets():
    model, x = Residual(), torch.randn(1, 3, 8, 8)
    structure = trace(model, x)
    with pytest.raises(ValueError, match="cannot be reached"):
        PruneHandler(model, structure=structure, target=Flops(), schedule=schedule.OneShot(0.999, at=1))
    with pytest.raises(TypeError, match="Argument target"):
        PruneHandler(model, structure=structure, target="flops")
    with pytest.raises(ValueError, match="needs a structure"):
        PruneHandler(model, target=Flops())
    with pytest.raises(ValueError, match="one group alone"):
        groups = [{"params": "stem.weight"}, {"params": "first.weight"}]
        PruneHandler(model, params=groups, structure=structure, target=Flops())
    with pytest.raises(ValueError, match="runs"):
        Latency(model, x, runs=0)
    by_hand = declare(model, [{"first.weight": 0, "norm1.weight": 0, "norm1.bias": 0, "second.weight": 1}])
    with pytest.raises(ValueError, match="not traced"):
        PruneHandler(model, structure=by_hand, target=Flops(), schedule=schedule.OneShot(0.5, at=1))


def test_groups_of_units_with_settings_of_their_own():
    """Units of two groups may lie in one weight; together they are what each alone prunes."""
    torch.manual_seed(0)
    x = torch.randn(1, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    rates = {"0.weight": 0.75, "2.weight": 0.5}
    structure = trace(model, x)
    groups = [{"params": name, "sparsity": rate} for name, rate in rates.items()]
    pruner = PruneHandler(copy.deepcopy(model), params=groups, structure=structure)
    pruner.step()
    assert pruner.units == {"0.weight": (8, 2), "2.weight": (12, 6)}
    for name, rate in rates.items():
        alone = prune_model(model, name, sparsity=rate, structure=structure, inplace=False)[1]
        assert torch.equal(structure.kept(alone)[name], structure.kept(pruner.masks)[name])
    shrinker = ShrinkHandler(pruner, x)
    shrinker.shrink()
    assert pruner.units == {"0.weight": (8, 2), "2.weight": (12, 6)} and pruner.structure.groups["2.weight"].size == 6
    pruner.param_groups[1]["sparsity"] = 0.75
    pruner.step()
    assert pruner.units == {"0.weight": (8, 2), "2.weight": (12, 3)}
    shrinker.shrink()
    assert [tuple(each.shape) for each in pruner.masks.parameters.values()][:3] == [(2, 4), (2,), (3, 2)]


def test_what_is_sliced_off_counts_as_pruned():
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(1, 3, 8, 8)
    pruner = PruneHandler(model, structure=trace(model, x), allocation=allocation.Uniform())
    engine = Engine(lambda engine, batch: None)
    pruner.attach(engine)
    pruner.step(0.5)
    before = dict(engine.state.sparsity)
    ShrinkHandler(pruner, x).shrink()
    assert engine.state.sparsity == before and before["units"] == 0.5 and before["stem.weight"] == 0.5


class LeNet(nn.Module):
    """Its flattened size is written in the program, or computed by it: the exported graph holds 256 both times."""

    def __init__(self, written):
        super().__init__()
        self.written, self.pool = written, nn.MaxPool2d(2)
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(256, 120), nn.Linear(120, 10)

    def forward(self, x):
        x = self.pool(self.conv2(self.pool(self.conv1(x).relu())).relu())
        x = x.view(-1, 16 * 4 * 4 if self.written else math.prod(x.shape[1:]))
        return self.fc2(self.fc1(x).relu())


@pytest.mark.parametrize("written", [True, False])
def test_a_size_in_the_program_is_told_from_one_that_it_computes(written):
    structure = trace(LeNet(written), torch.randn(2, 1, 28, 28))
    free = {"conv1.weight", "fc1.weight"}
    assert set(structure.groups) == (free if written else free | {"conv2.weight"})
    if written:
        assert "writes its size" in structure.frozen["conv2.weight", 0]
