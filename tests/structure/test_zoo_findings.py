"""Found by the zoo of real architectures: programs that run on at another width, and norms that permute."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ignite_prune import shrink, trace


class OpenSequence(nn.Module):
    """Attention that leaves the sequence open: without a head it runs on with shorter sequences, wrongly (OPT)."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.num_heads, self.head_dim = 4, 4

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (
            each(x).view(b, -1, self.num_heads, self.head_dim).transpose(1, 2) for each in (self.q, self.k, self.v)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))


class SameNumber(OpenSequence):
    """An attribute of another meaning that holds the number of heads too (StableLM)."""

    def __init__(self):
        super().__init__()
        self.rotary_dims = 4

    def forward(self, x):
        return super().forward(x * (x.shape[-1] - self.rotary_dims))


@pytest.mark.parametrize("kind", [OpenSequence, SameNumber])
def test_heads_are_found_by_values_where_a_wrong_width_runs(kind):
    model, x = kind().double(), torch.randn(2, 6, 16).double()
    structure = trace(model, x)
    heads = next(group for group in structure if group.name.endswith("q.weight") or group.size == 4)
    report = shrink(model, {heads.name: [0, 2]}, x, structure=structure)
    assert (model.num_heads, model.head_dim, model.q.out_features) == (2, 4, 8)
    assert getattr(model, "rotary_dims", 4) == 4
    assert report.error < 1e-12


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ByFunction(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


@pytest.mark.parametrize("norm", [ChannelsFirst, ByFunction])
def test_layer_norm_over_channels_first_is_sliced_by_request(norm):
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), norm(16), nn.ReLU(), nn.Conv2d(16, 2, 1)).double()
    nn.init.uniform_(net[1].bias)
    x = torch.randn(2, 3, 8, 8).double()
    with pytest.warns(UserWarning, match="statistics"):
        structure = trace(net, x, through_norms=True)
    assert shrink(net, {"0.weight": [0, 1, 7]}, x, structure=structure).error < 1e-12
    assert net[1].normalized_shape == (13,)
