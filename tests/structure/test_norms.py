"""Units that a norm goes over go by request, with a warning; the check then normalises over what is left."""

import copy

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, ShrinkHandler, allocation, shrink, trace
from tests.models import Net
from tests.structure.test_shrink import halved, masked


def encoder():
    return Net(
        lambda net, x: net.out(net.norm(net.body(net.embed(x))).mean(1)),
        embed=nn.Linear(6, 16),
        body=nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True),
        norm=nn.RMSNorm(16),
        out=nn.Linear(16, 3),
    ).double(), torch.randn(2, 5, 6, dtype=torch.float64)


def grouped():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten())
    return model.append(nn.Linear(200, 3)).double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)


@pytest.mark.parametrize("build, name, size", [(encoder, "embed.weight", 16), (grouped, "0.weight", 4)])
def test_by_request_alone(build, name, size):
    model, x = build()
    assert name not in trace(model, x).groups
    with pytest.warns(UserWarning, match="that norms go over"):
        structure = trace(model, x, through_norms=True)
    assert structure.groups[name].size == size


@pytest.mark.filterwarnings("ignore:Units that norms")
@pytest.mark.parametrize("build", [encoder, grouped])
def test_the_sliced_model_normalises_over_what_is_left(build):
    torch.manual_seed(0)
    model, x = build()
    optimizer = torch.optim.AdamW(model.parameters())
    structure = trace(model, x, through_norms=True)
    masks = structure.masks(halved(structure))
    naive = masked(copy.deepcopy(model), masks).eval()(x)
    report = shrink(masked(model, masks), masks, x, optimizer=optimizer, structure=structure)
    assert report.error < 1e-12 and not torch.allclose(model.eval()(x), naive)
    model.train()(x).sum().backward()
    optimizer.step()


@pytest.mark.filterwarnings("ignore:Units that norms")
def test_twice():
    torch.manual_seed(0)
    model, x = encoder()
    pruner = PruneHandler(model, structure=trace(model, x, through_norms=True), allocation=allocation.Uniform())
    shrinker = ShrinkHandler(pruner, x)
    for sparsity in (0.25, 0.5):
        pruner.step(sparsity)
        shrinker.shrink()
    assert model.embed.out_features == model.norm.weight.numel() == model.body.linear1.in_features < 16


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised in each forward pass, as in BiT and NFNet, or by their moments."""

    def __init__(self, *sizes, moments=False):
        super().__init__(*sizes)
        self.gain, self.moments = nn.Parameter(torch.rand(sizes[1], 1, 1, 1)), moments

    def forward(self, x):
        if self.moments:
            var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True)
            return self._conv_forward(x, (self.weight - mean) / (var + 1e-5).sqrt(), self.bias)
        flat, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * 0.3).view(-1)
        weight = nn.functional.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


@pytest.mark.filterwarnings("ignore:Units that norms")
@pytest.mark.parametrize("moments", [False, True])
def test_inputs_of_standardised_weights_go_by_request(moments):
    torch.manual_seed(0)
    convs = Standardised(3, 8, 3, moments=moments), Standardised(8, 6, 3, moments=moments)
    layers = convs[0], nn.BatchNorm2d(8), nn.ReLU(), convs[1], nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(24, 2)).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert [group.name for group in trace(model, x)] == ["3.weight"]
    structure = trace(model, x, through_norms=True)
    assert {group.name: group.size for group in structure} == {"0.weight": 8, "3.weight": 6}
    assert shrink(model, structure.masks(halved(structure)), x, structure=structure).error < 1e-12
