"""Units of unlike groups are ranked fairly: attention heads with neurons, kinds with kinds."""

import warnings

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, SparsityWarning, allocation, pattern, prune_model, saliency, shrink, trace
from ignite_prune.structure import Flops
from tests.models import small_net

FAIR = [pattern.Coupled(), pattern.Coupled(norm=1, combine="sum"), pattern.Coupled(norm=None)]


class Attention(nn.Module):
    """Four heads of eight, or more of fewer, and a feed-forward layer of 64 neurons."""

    def __init__(self, size=8):
        super().__init__()
        self.size = size
        self.qkv = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        n, length, _ = x.shape
        q, k, v = (layer(x).view(n, length, -1, self.size).transpose(1, 2) for layer in self.qkv)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1)
        x = x + self.out(y)
        return x + self.down(self.up(x).relu())


def transformer(size=8):
    torch.manual_seed(0)
    model = nn.Sequential(*(Attention(size) for _ in range(4)))
    return model, trace(model, torch.randn(2, 5, 32))


def left(structure, masks, part):
    return sum(int(kept.sum()) for name, kept in structure.kept(masks).items() if part in name)


@pytest.mark.parametrize("target", [None, Flops()], ids=str)
@pytest.mark.parametrize("rule", FAIR, ids=str)
def test_heads_and_neurons_go_alike_by_default(rule, target):
    model, structure = transformer()
    masks = prune_model(model, sparsity=0.5, structure=structure, pattern=rule, target=target)
    assert 3 <= left(structure, masks, "qkv") <= 13  # of 16
    assert 90 <= left(structure, masks, "up") <= 160  # of 256


def test_heads_that_never_go_are_named():
    model, structure = transformer()
    with pytest.warns(SparsityWarning, match=r"'1.qkv.0.weight', '2.qkv.0.weight', '3.qkv.0.weight' lost no unit"):
        masks = prune_model(model, sparsity=0.5, structure=structure, pattern=pattern.Coupled(normalise=None))
    assert left(structure, masks, "qkv") == 16
    model, structure = transformer()
    with torch.no_grad():
        for block in model:
            block.up.weight.mul_(100)
    with pytest.warns(SparsityWarning, match=r"'0.qkv.0.weight'.* lost all that may go"):
        prune_model(model, sparsity=0.1, structure=structure, pattern=pattern.Coupled(normalise=None))


@pytest.mark.parametrize("divided", [allocation.Uniform(), allocation.Isomorphic(), allocation.Global()], ids=str)
def test_no_warning_where_groups_are_alike(divided):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sparsity in (0.1, 0.5, 0.9):
            model, structure = transformer(2)
            prune_model(model, sparsity=sparsity, structure=structure, allocation=divided)


@pytest.mark.parametrize("factor, expected", [(1.02, (9, 15)), (3, (8, 8)), (1 / 3, (8, 8))])
def test_kinds_of_groups_compete_among_themselves(factor, expected):
    """Heads that are a little larger are kept before others; those of another scale have a ranking of their own."""
    model, structure = transformer(2)
    with torch.no_grad():
        for parameter in (p for layer in model[0].qkv for p in layer.parameters()):
            parameter.mul_(factor)
        model[0].out.weight.mul_(factor)
    masks = prune_model(model, sparsity=0.5, structure=structure, allocation=allocation.Isomorphic())
    assert left(structure, masks, "qkv") == 32 and left(structure, masks, "up") == 128
    assert expected[0] <= int(structure.kept(masks)["0.qkv.0.weight"].sum()) <= expected[1]


def test_scores_are_divided_by_the_mean_of_the_units_that_are_left():
    model = nn.Sequential(
        nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)
    )
    structure = trace(model, torch.randn(1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [6.0]]))  # mean 3
        model[2].weight.copy_(torch.tensor([[7.0] * 4, [10.0] * 4, [13.0] * 4]))  # norms 14, 20, 26: mean 20
        model[4].weight.zero_()
    rule = pattern.Coupled(normalise="group", combine="first")
    pruner = PruneHandler(model, structure=structure, pattern=rule)
    pruner.step(2 / 7)  # 1/3, 2/3, 1, 2 and 0.7, 1, 1.3
    assert pruner.units == {"0.weight": (4, 2), "2.weight": (3, 3)}
    pruner.step(4 / 7)  # 3, 6 by 4.5: 0.67, 1.33; the second layer has half the inputs, all in proportion: 0.7, 1, 1.3
    assert pruner.units == {"0.weight": (4, 1), "2.weight": (3, 2)}
    raw = pattern.Coupled(normalise=None, combine="first")
    kept = structure.kept(prune_model(model, sparsity=4 / 7, structure=structure, pattern=raw))
    assert [int(each.sum()) for each in kept.values()] == [1, 2]


@pytest.mark.parametrize("normalise", ["kind", "group", None])
def test_the_order_within_a_group_is_that_of_the_norms(normalise):
    found = []
    for rule in (pattern.Coupled(normalise=None), pattern.Coupled(normalise=normalise)):
        model, structure = transformer()
        found.append(
            prune_model(model, sparsity=0.4, structure=structure, pattern=rule, allocation=allocation.Uniform())
        )
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("score", [saliency.Magnitude(), saliency.Gradient()], ids=["magnitude", "gradient"])
def test_masked_and_sliced_models_are_ranked_alike(score):
    torch.manual_seed(1)
    x, answers = torch.randn(8, 4, 8, 8), torch.arange(8) % 4
    options = {"saliency": score, "data": [(x, answers)], "loss_fn": nn.functional.cross_entropy}
    if score == saliency.Magnitude():
        options = {}
    left = []
    for slices in (False, True):
        model = small_net()
        pruner = PruneHandler(model, structure=trace(model, x), **options)
        pruner.step(0.25)  # 18 of 24 units
        if slices:
            shrink(model, pruner, x)
            pruner = PruneHandler(model, structure=trace(model, x), **options)
        pruner.step(1 / 3 if slices else 0.5)  # 12 units
        left.append([kept for _, kept in pruner.units.values()])
    assert left[0] == left[1]


def test_a_wrong_normalisation_is_refused():
    with pytest.raises(ValueError, match="Argument normalise should be 'kind', 'group' or None, but given 'max'"):
        pattern.Coupled(normalise="max")
