"""Programs that write out what others call: sizes computed from shapes, norms, packed sequences."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ignite_prune import load_shrunk, shrink, trace
from ignite_prune.structure import shrunk_state
from tests.structure.test_shrink import halved


class Between(nn.Module):
    def __init__(self, f, width=16):
        super().__init__()
        self.first, self.last, self.f = nn.Linear(6, width), nn.Linear(width, 3), f

    def forward(self, x):
        return self.last(self.f(F.relu(self.first(x))))


def sliced(model, x, **options):
    """Slice half of the units off, and check that a fresh model takes the result."""
    torch.manual_seed(0)
    model, fresh = model.double().eval(), copy.deepcopy(model)
    structure = trace(model, x, **options)
    report = shrink(model, structure.masks(halved(structure)), x, structure=structure)
    assert report.error < 1e-12
    args = x if isinstance(x, tuple) else (x,)
    assert torch.equal(load_shrunk(fresh, shrunk_state(model, report.indices))(*args), model(*args))
    return {group.name: group.size for group in structure}


def shuffled(y):
    n, c = y.shape
    return y.view(n, 2, c // 2).transpose(1, 2).reshape(n, c)


def shuffled_back(y):
    n, c = y.shape
    return y.view(n, c // 2, 2).transpose(1, 2).reshape(n, c)


@pytest.mark.parametrize("f", [shuffled, shuffled_back])
def test_parts_of_a_width_that_the_program_computes(f):
    assert sliced(Between(f), torch.randn(4, 6).double()) == {"first.weight": 8}


@pytest.mark.parametrize("sizes", [(2, 8), (4, 4)])
def test_parts_that_are_written_stay(sizes):
    model = Between(lambda y: y.view(-1, *sizes).transpose(1, 2).flatten(1))
    structure = trace(model, torch.randn(4, 6))
    assert not len(structure) and "writes its size in the program" in structure.frozen["first.weight", 0]


class LayerNorm(nn.Module):  # as in ConvNeXt
    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.normalized_shape = (width,)

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias)


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class StandardNorm(RMSNorm):
    def forward(self, x):
        variance, mean = torch.var_mean(x, -1, keepdim=True)
        return self.weight * (x - mean) / (variance.sqrt() + 1e-6)


class Gate(RMSNorm):  # a mean, but no norm
    def forward(self, x):
        return self.weight * x * x.mean(-1, keepdim=True).sigmoid()


@pytest.mark.filterwarnings("ignore:Units that norms")
@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm, StandardNorm])
def test_norms_by_request(norm):
    x = torch.randn(4, 6).double()
    assert not len(trace(Between(norm(16)), torch.randn(4, 6)))
    model = Between(norm(16))
    assert sliced(model, x, through_norms=True) == {"first.weight": 16}
    if norm is LayerNorm:
        assert model.f.normalized_shape == (8,)


def test_a_mean_that_is_no_norm_stays():
    assert not len(trace(Between(Gate(16)), torch.randn(4, 6), through_norms=True))


class Tagger(nn.Module):
    def __init__(self, layer, pads):
        super().__init__()
        self.embed, self.layer, self.pads = nn.Embedding(9, 8), layer, pads
        self.out = nn.Linear(32 if layer.bidirectional and pads else 16, 3)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        found, state = self.layer(packed)
        if self.pads:
            return self.out(pad_packed_sequence(found, batch_first=True)[0])
        return self.out((state[0] if isinstance(state, tuple) else state)[-1])


@pytest.mark.parametrize(
    "layer, pads",
    [(nn.LSTM(8, 16, batch_first=True), False), (nn.GRU(8, 16, batch_first=True, bidirectional=True), True)],
)
def test_packed_sequences(layer, pads):
    inputs = torch.randint(0, 9, (3, 4)), torch.tensor([2, 4, 3])
    assert sliced(Tagger(layer, pads), inputs) == {"embed.weight[1]": 8, "layer.weight_ih_l0": 16}
