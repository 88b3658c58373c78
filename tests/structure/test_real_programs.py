"""Programs as people write them: what can be sliced is free, and equals the masked model (``shrink`` compares)."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ignite_prune import prune_model, shrink, trace


class Net(nn.Module):
    """Layers by name, and a forward pass over them."""

    def __init__(self, forward, sizes=None, **layers):
        super().__init__()
        self._forward = forward
        for name, value in {**layers, **(sizes or {})}.items():
            setattr(self, name, value)

    def forward(self, *args):
        return self._forward(self, *args)


def linear(f):
    """Two layers with an operation between them."""
    return Net(lambda s, x: s.o(f(s.a(x))), a=nn.Linear(6, 12), o=nn.Linear(12, 3)), torch.rand(4, 6)


def image(f, kind=nn.Conv2d, shape=(2, 3, 8, 8)):
    net = Net(lambda s, x: s.o(f(s.a(x))), a=kind(3, 12, 3, padding=1), o=kind(12, 2, 1))
    return net, torch.rand(shape)


def volume(f):
    return image(f, nn.Conv3d, (1, 3, 4, 4, 4))


def sequence(layer, pick=lambda y: y[0]):
    net = Net(lambda s, x: s.o(pick(s.r(s.a(x)))), a=nn.Linear(6, 10), r=layer, o=nn.Linear(12, 3))
    return net, torch.rand(2, 5, 6)


def cell(layer):
    def forward(s, x):
        state = (torch.zeros(len(x), 12),) * 2 if isinstance(s.r, nn.LSTMCell) else torch.zeros(len(x), 12)
        for t in range(x.shape[1]):
            state = s.r(s.a(x[:, t]), state)
        return s.o(state[0] if isinstance(state, tuple) else state)

    return Net(forward, a=nn.Linear(6, 10), r=layer, o=nn.Linear(12, 3)), torch.rand(2, 5, 6)


def transposed(groups):
    layer = nn.ConvTranspose2d(12, 12, 2, stride=2, groups=groups)
    net = Net(lambda s, x: s.o(s.t(s.a(x))), a=nn.Conv2d(3, 12, 1), t=layer, o=nn.Conv2d(12, 2, 1))
    return net, torch.rand(2, 3, 4, 4)


def scatter(h):
    index = torch.tensor([0, 1, 0, 1])
    return torch.zeros(2, h.shape[1]).scatter_add(0, index[:, None].expand(-1, h.shape[1]), h)


WHOLE = {
    "an elementwise function without a rule": lambda: linear(torch.special.expit),
    "one of two tensors": lambda: linear(lambda y: torch.hypot(y, y * 0.5)),
    "L2 norm over units": lambda: linear(lambda y: F.normalize(y, dim=-1)),
    "sum over units": lambda: linear(lambda y: y * y.sum(1, keepdim=True)),
    "cosine similarity": lambda: linear(lambda y: y * F.cosine_similarity(y, y * 2, dim=1)[:, None]),
    "trilinear upsampling": lambda: volume(lambda y: F.interpolate(y, scale_factor=2, mode="trilinear")),
    "bicubic upsampling": lambda: image(lambda y: F.interpolate(y, scale_factor=2, mode="bicubic")),
    "grid_sample": lambda: image(lambda y: F.grid_sample(y, torch.zeros(2, 4, 4, 2), align_corners=False)),
    "unfold and fold": lambda: image(lambda y: F.fold(F.unfold(y, 2, stride=2), (8, 8), 2, stride=2)),
    "fft": lambda: image(lambda y: torch.fft.irfft2(torch.fft.rfft2(y), s=(8, 8))),
    "pieces by tensor_split": lambda: linear(lambda y: torch.cat([p * 2 for p in torch.tensor_split(y, 2, -1)], -1)),
    "rows sorted": lambda: linear(lambda y: y.sort(0).values),
    "rows of the largest": lambda: linear(lambda y: y.topk(2, 0).values),
    "median of rows": lambda: linear(lambda y: y - y.median(0, keepdim=True).values),
    "index_add": lambda: linear(lambda y: torch.zeros(2, y.shape[1]).index_add(0, torch.tensor([0, 1, 0, 1]), y)),
    "scatter_add over a computed width": lambda: linear(scatter),
    "index_put": lambda: linear(lambda y: torch.zeros_like(y).index_put((torch.tensor([2, 0, 1, 3]),), y)),
    "transposed convolution in groups": lambda: transposed(groups=4),
    "depthwise transposed convolution": lambda: transposed(groups=12),
    "a norm of each channel": lambda: (
        Net(lambda s, x: s.o(s.n(s.a(x))), a=nn.Conv2d(3, 12, 1), n=nn.GroupNorm(12, 12), o=nn.Conv2d(12, 2, 1)),
        torch.rand(2, 3, 4, 4),
    ),
    "RNN": lambda: sequence(nn.RNN(10, 12, batch_first=True)),
    "LSTM with projections": lambda: sequence(nn.LSTM(10, 16, proj_size=12, batch_first=True)),
    "LSTM cell": lambda: cell(nn.LSTMCell(10, 12)),
    "GRU cell": lambda: cell(nn.GRUCell(10, 12)),
    "RNN cell": lambda: cell(nn.RNNCell(10, 12)),
    "halves by a width that is read": lambda: linear(
        lambda y: torch.cat([y[:, : y.shape[1] // 2] * 2, y[:, y.shape[1] // 2 :] * 3], 1)
    ),
    "split by a width that is read": lambda: linear(
        lambda y: torch.cat([p * (k + 2) for k, p in enumerate(y.split(y.shape[1] // 2, -1))], -1)
    ),
    "under autocast": lambda: linear(lambda y: _in_autocast(y)),
    "noise in eval": lambda: linear(lambda y: y * (1 + 0.1 * torch.randn_like(y))),
    "dropout that stays on": lambda: linear(lambda y: F.dropout(y, 0.3, training=True)),
}


def _in_autocast(y):
    with torch.autocast("cpu", enabled=False):
        return y * 2


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", WHOLE)
def test_a_program_is_sliced(kind):
    torch.manual_seed(0)
    model, x = WHOLE[kind]()
    structure = trace(model.eval(), x)
    assert "a.weight" in structure.groups, structure
    kept = {group.name: torch.arange(group.size) >= group.size // 2 for group in structure}
    shrink(model, structure.masks(kept), x, structure=structure)
    assert len(model.a.weight) < 12


def attention(self, x, flat, fused="parts"):
    b, n, _ = x.shape
    if fused == "parts":
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    elif fused == "chunk":
        q, k, v = (e.view(b, n, self.num_heads, self.head_dim).transpose(1, 2) for e in self.qkv(x).chunk(3, -1))
    else:  # interleaved by head, as in BLOOM
        q, k, v = self.qkv(x).view(b, n, self.num_heads, 3, self.head_dim).transpose(1, 2).unbind(3)
    y = (q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(-1) @ v
    return self.o(self.proj(flat(self, y.transpose(1, 2), b, n)))


FLAT = {
    "open": lambda s, y, b, n: y.reshape(b, n, -1),
    "product of attributes": lambda s, y, b, n: y.contiguous().view(b, n, s.num_heads * s.head_dim),
    "attribute": lambda s, y, b, n: y.reshape(b, n, s.inner),
}


@pytest.mark.parametrize("flat", FLAT)
@pytest.mark.parametrize("fused", ["parts", "chunk", "interleaved"])
def test_heads_written_in_the_program_are_units(fused, flat):
    """``num_heads`` is an attribute that ``forward`` reads: heads are units, never rows, and slicing sets it."""
    torch.manual_seed(0)
    model = Net(
        lambda s, x: attention(s, x, FLAT[flat], fused),
        {"num_heads": 4, "head_dim": 8, "inner": 32, "layers": 4},
        qkv=nn.Linear(32, 96),
        proj=nn.Linear(32, 32),
        o=nn.Linear(32, 5),
    ).eval()
    x = torch.randn(2, 6, 32)
    structure = trace(model, x)
    assert structure.groups["qkv.weight"].size == 4
    report = shrink(model, {"qkv.weight": [1]}, x, structure=structure)
    assert model.num_heads == 3 and model.head_dim == 8 and model.layers == 4
    assert model.inner == (24 if flat == "attribute" else 32)
    assert model.qkv.weight.shape == (72, 32) and report.error < 1e-5
    assert trace(model, x).groups["qkv.weight"].size == 3


def test_what_the_program_writes_stays():
    model, x = linear(lambda y: torch.cat([y[:, :6] * 2, y[:, 6:] * 3], 1))
    assert "writes its size in the program" in trace(model, x).frozen["a.weight", 0]


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    other: object = None


@pytest.mark.parametrize(
    "wrap", [Output, lambda y: torch.distributions.Normal(y, 1.0, validate_args=False), lambda y: {"y": [(y,)]}]
)
def test_outputs_of_any_type(wrap):
    model = Net(lambda s, x: wrap(s.o(F.relu(s.a(x)))), a=nn.Linear(6, 12), o=nn.Linear(12, 3))
    structure = trace(model, torch.rand(4, 6))
    assert {group.name: group.size for group in structure} == {"a.weight": 12}
    assert ("o.weight", 0) in structure.frozen


def test_a_batch_that_is_a_dict_is_one_argument():
    model = Net(lambda s, batch: s.o(F.relu(s.a(batch["x"]))), a=nn.Linear(6, 12), o=nn.Linear(12, 3))
    inputs = {"x": torch.rand(4, 6), "name": "an id"}
    assert trace(model, inputs).groups["a.weight"].size == 12


def test_what_a_forward_pass_keeps_on_a_module_is_an_output_and_no_obstacle():
    def forward(s, x):
        s.features = s.project(F.relu(s.a(x)))
        return s.o(F.relu(s.a(x)))

    model = Net(forward, a=nn.Linear(6, 12), project=nn.Linear(12, 4), o=nn.Linear(12, 3))
    x = torch.rand(4, 6)
    model(x)  # a tensor of the graph is on the model
    structure = trace(model, x)
    assert set(structure.groups) == {"a.weight"}
    shrink(model, {"a.weight": [0, 1]}, x, structure=structure)
    model(x)
    assert model.features.shape == (4, 4)
    pruned, _ = prune_model(model, sparsity=0.5, inplace=False)
    assert pruned(x).shape == (4, 3)


def test_branches_of_training_are_followed():
    def forward(s, x):
        h = F.relu(s.b(F.relu(s.a(x))))
        return (s.o(h), s.aux2(F.relu(s.aux1(h)))) if s.training else s.o(h)

    layers = {"a": nn.Linear(6, 12), "b": nn.Linear(12, 12), "aux1": nn.Linear(12, 8), "aux2": nn.Linear(8, 3)}
    model, x = Net(forward, **layers, o=nn.Linear(12, 3)), torch.rand(4, 6)
    structure = trace(model, x)
    assert {group.name: group.size for group in structure} == {"a.weight": 12, "b.weight": 12, "aux1.weight": 8}
    shrink(model.train(), {"b.weight": [0], "aux1.weight": [0]}, x, structure=structure)
    assert model.aux1.weight.shape == (7, 11)


@pytest.mark.parametrize(
    "choose",
    [
        lambda h, m: h[m > 0],
        lambda h, m: h.index_select(0, (m > 0).nonzero().squeeze(1)),
        lambda h, m: torch.repeat_interleave(h, m, dim=0),
        lambda h, m: h + torch.unique(m).sum(),
    ],
    ids=["mask", "nonzero", "durations", "unique"],
)
def test_positions_that_depend_on_data_stay_and_widths_may_go(choose):
    model = Net(
        lambda s, x, m: s.o(F.relu(s.b(choose(F.relu(s.a(x)), m)))),
        a=nn.Linear(4, 16),
        b=nn.Linear(16, 12),
        o=nn.Linear(12, 2),
    )
    structure = trace(model, (torch.randn(5, 4), torch.tensor([1, 2, 0, 3, 1])))
    assert {group.name: group.size for group in structure} == {"a.weight": 16, "b.weight": 12}
