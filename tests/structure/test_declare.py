"""Structures by hand: every layout of units that a layer has, names of a group, attributes that hold sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ignite_prune import PruneHandler, ShrinkHandler, allocation, shrink, trace
from ignite_prune.structure import Units, declare, load_shrunk, shrunk_state
from tests.structure.zoo import Residual


class Cells(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        state = None
        for each in x.unbind(1):
            state = self.cell(each, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Attention(nn.Module):
    def __init__(self, heads=4, size=3, fused=True, interleaved=False):
        super().__init__()
        self.num_heads, self.size, self.interleaved = heads, size, interleaved
        self.inner = heads * size
        self.qkv, self.out = nn.Linear(8, 3 * heads * size), nn.Linear(heads * size, 8)

    def forward(self, x):
        n, length, _ = x.shape
        if self.interleaved:
            q, k, v = self.qkv(x).view(n, length, self.num_heads, 3, self.size).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = self.qkv(x).view(n, length, 3, self.num_heads, self.size).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(mixed.reshape(n, length, self.inner))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(6, 8)

    def forward(self, x):
        return self.down(F.glu(self.up(x)))


class Flat(nn.Module):
    def __init__(self, last=False):
        super().__init__()
        self.last = last
        self.conv, self.other, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(4, 7), nn.Linear(5 * 4 + 7, 2)

    def forward(self, x):
        y = self.conv(x)
        y = (y.permute(0, 2, 3, 1) if self.last else y).flatten(1)
        return self.head(torch.cat([y, F.relu(self.other(x[:, 0].flatten(1)))], 1))


LSTM = {"cell.weight_ih": Units(0, parts=4), "cell.weight_hh": [Units(0, parts=4), 1], "head.weight": 1}
LSTM |= {"cell.bias_ih": Units(parts=4), "cell.bias_hh": Units(parts=4)}
GRU = {name: Units(0, parts=3) for name in ("cell.weight_ih", "cell.bias_ih", "cell.bias_hh")}
GRU |= {"cell.weight_hh": [Units(0, parts=3), 1], "head.weight": 1}
FUSED = {"qkv.weight": Units(0, parts=3, each=3), "qkv.bias": Units(0, parts=3, each=3), "out.weight": Units(1, each=3)}
MIXED = {"qkv.weight": Units(0, each=9), "qkv.bias": Units(0, each=9), "out.weight": Units(-1, each=3)}
HEADS = {"num_heads": "qkv.weight", "inner": "out.weight"}
GLU = {"up.weight": Units(0, parts=2), "up.bias": Units(0, parts=2), "down.weight": 1}
FIRST = {"conv.weight": 0, "conv.bias": 0, "head.weight": Units(1, each=4, stop=20)}
LAST = {"conv.weight": 0, "conv.bias": 0, "head.weight": Units(1, parts=4, stop=20)}
BESIDE = {"other.weight": 0, "other.bias": 0, "head.weight": Units(1, start=20)}
TOKENS, MAPS = (2, 5, 8), (2, 3, 2, 2)
CASES = {
    "LSTM cell": (lambda: Cells(nn.LSTMCell), [LSTM], {}, (2, 4, 3)),
    "GRU cell": (lambda: Cells(nn.GRUCell), [GRU], {}, (2, 4, 3)),
    "RNN cell": (
        lambda: Cells(nn.RNNCell),
        [{"cell.weight_ih": 0, "cell.weight_hh": [0, 1], "cell.bias_ih": 0, "cell.bias_hh": 0, "head.weight": 1}],
        {},
        (2, 4, 3),
    ),
    "fused heads": (Attention, [FUSED], HEADS, TOKENS),
    "interleaved heads": (lambda: Attention(interleaved=True), [MIXED], HEADS, TOKENS),
    "GLU": (Gated, [GLU], {}, TOKENS),
    "flattened and concatenated": (Flat, [FIRST, BESIDE], {}, MAPS),
    "flattened, channels last": (lambda: Flat(last=True), [LAST, BESIDE], {}, MAPS),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layout_is_sliced_as_it_is_masked_and_loads_again(case):
    build, groups, attributes, shape = CASES[case]
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(shape).double()
    structure = declare(model, groups, attributes=attributes)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    gone = {group.name: [0, group.size - 1] for group in structure}
    report = shrink(model, gone, x, structure=structure, optimizer=optimizer)
    assert report.error < 1e-12 and report.parameters[1] < report.parameters[0]
    assert all(after == before - 2 for before, after in report.units.values())
    model(x).square().mean().backward()
    optimizer.step()
    loaded = load_shrunk(build().double(), shrunk_state(model, report.indices))
    assert torch.equal(loaded(x), model(x))


def test_heads_are_pruned_and_sliced_in_two_steps_and_resume():
    def made():
        torch.manual_seed(0)
        model = Attention()
        structure = declare(model, [FUSED], attributes=HEADS)
        pruner = PruneHandler(model, structure=structure)
        return model, pruner, ShrinkHandler(pruner, x)

    x = torch.randn(TOKENS)
    model, pruner, shrinker = made()
    for sparsity, heads in ((0.25, 3), (0.5, 2)):
        pruner.step(sparsity)
        shrinker.shrink()
        assert (model.num_heads, model.inner, model.qkv.out_features) == (heads, 3 * heads, 9 * heads)
    again, _, loading = made()
    loading.load_state_dict(shrinker.state_dict())
    again.load_state_dict(model.state_dict())
    assert (again.num_heads, again.inner) == (2, 6) and torch.equal(again(x), model(x))
    state = shrunk_state(model, shrinker.left)
    assert state["attributes"] == {"": {"num_heads": 2, "inner": 6}}


def test_units_that_do_not_fit_are_refused():
    model = Attention()
    for groups, attributes, text in (
        ([{"qkv.weight": Units(0, parts=5)}], {}, "does not fit 36 indices"),
        ([{**FUSED, "out.weight": 1}], {}, "of one size in units"),
        ([{"qkv.weight": "0"}], {}, r"should be a dimension or Units"),
        ([{"qkv.weight": [Units(0, stop=12), Units(0, start=6, stop=18)]}], {}, "the same indices"),
        ([FUSED, {"qkv.bias": 0}], {}, "Two groups"),
        ([FUSED], {"heads": "qkv.weight"}, "no attribute 'heads'"),
        ([FUSED], {"size": "qkv.weight"}, "a multiple of the 4 units"),
        ([FUSED], {"num_heads": "out.bias"}, "no units of 'out.bias'"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            declare(model, groups, attributes=attributes)


@pytest.mark.parametrize("name", ["stem.weight", "second.weight", "norm2.weight", "stem.bias", "first.weight[1]"])
def test_a_group_goes_by_any_of_its_members(name):
    model = Residual()
    structure = trace(model, torch.randn(1, 3, 8, 8))
    assert structure.named(name) is structure.groups["stem.weight"]
    gone = torch.arange(8) >= 2
    assert structure.parameters({name: gone}) == structure.parameters({"stem.weight": gone})
    assert structure.flops({name: gone}) == structure.flops({"stem.weight": gone})
    if "[" not in name:
        pruner = PruneHandler(model, params=name, structure=structure)
        pruner.step(0.5)
        assert pruner.units == {"stem.weight": (8, 4)}


def test_ratios_by_layer_take_the_other_end_of_a_residual_sum():
    model = Residual()
    structure = trace(model, torch.randn(1, 3, 8, 8))
    params = {"first.weight": {"sparsity": 0.25}, "second.weight": {"sparsity": 0.5}}
    pruner = PruneHandler(model, params=params, structure=structure, allocation=allocation.Uniform())
    pruner.step()
    assert pruner.units == {"stem.weight": (8, 4), "first.weight": (16, 12)}
    params = {"stem.weight": {"sparsity": 0.25}, "second.weight": {"sparsity": 0.5}}
    with pytest.raises(ValueError, match=r"The units of 'stem\.weight' appear in group 0 and again in group 1"):
        PruneHandler(model, params=params, structure=structure)
    # Globs mean the weights that come first in a group: the stem's channels are not among those of "first.*".
    pruner = PruneHandler(model, params="first.*", structure=structure)
    assert list(pruner.units) == ["first.weight"]
