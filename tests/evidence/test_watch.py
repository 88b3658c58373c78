"""What a watch sees of a forward pass: inputs and evaluation points, in every way a layer can be written."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from ignite_prune.evidence.forward.observer import ForwardObserver
from tests.models import Net


class Seen:
    def __init__(self, model, names=None):
        parameters = {n: p for n, p in model.named_parameters() if (n in names if names else n.endswith("weight"))}
        parameters = {n: p for n, p in parameters.items() if p.dim() > 1 or names}
        self.inputs, self.points, self.values, self.order = {}, {}, {}, []
        self.watch = ForwardObserver().subscribe(
            parameters, on_layer_call=self.on_input, on_activation=self.on_activation
        )

    def on_input(self, name, use):
        self.inputs.setdefault(name, []).append(use)
        self.order.append(("input", name))

    def on_activation(self, name, z, dim, samples):
        self.points.setdefault(name, []).append((z, dim))
        self.values.setdefault(name, []).append(z.detach().clone())
        self.order.append(("point", name))


def see(model, x, names=None):
    seen = Seen(model, names)
    with seen.watch.installed(model):
        seen.result = model(x)
    assert not _get_current_function_mode_stack()
    return seen


def hand_gelu(x):
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3))))


def hand_gelu_erf(x):
    return x * 0.5 * (1.0 + torch.erf(x / 2**0.5))


ACTIVATIONS = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "x.relu()": lambda x: x.relu(),
    "F.relu_": lambda x: F.relu_(x),
    "x.relu_()": lambda x: x.relu_(),
    "ReLU(inplace)": nn.ReLU(inplace=True),
    "F.relu(positional inplace)": lambda x: F.relu(x, True),
    "ReLU6": nn.ReLU6(),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU("tanh"),
    "SiLU": nn.SiLU(),
    "SiLU(inplace)": nn.SiLU(inplace=True),
    "ELU": nn.ELU(),
    "SELU": nn.SELU(),
    "CELU": nn.CELU(),
    "LeakyReLU": nn.LeakyReLU(),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x, 0.1),
    "PReLU": nn.PReLU(),
    "RReLU": nn.RReLU(),
    "Hardtanh": nn.Hardtanh(),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(0, 6),
    "Hardswish": nn.Hardswish(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Softplus": nn.Softplus(),
    "Mish": nn.Mish(),
    "Tanh": nn.Tanh(),
    "Sigmoid": nn.Sigmoid(),
    "Softsign": nn.Softsign(),
    "LogSigmoid": nn.LogSigmoid(),
    "Threshold": nn.Threshold(0.1, 0.0),
    "x * sigmoid(x)": lambda x: x * torch.sigmoid(x),
    "x.mul(x.sigmoid())": lambda x: x.mul(x.sigmoid()),
    "GELU by hand": hand_gelu,
    "GELU by hand, erf": hand_gelu_erf,
    "Mish by hand": lambda x: x * torch.tanh(F.softplus(x)),
    "x * (x > 0)": lambda x: x * (x > 0),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "where zeros_like": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "max of two": lambda x: torch.max(x, torch.tensor([0.0])),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "relu squared": lambda x: F.relu(x) ** 2,
    "relu6 by hand": lambda x: F.relu(x).clamp(max=6),
    "relu(x + 3) / 6 * x": lambda x: x * F.relu6(x + 3) / 6,
}


@pytest.mark.parametrize("how", ACTIVATIONS)
@pytest.mark.parametrize("normed", [False, True])
def test_activation_in_every_form(how, normed):
    activation = ACTIVATIONS[how]
    kept = []

    def forward(net, x):
        x = net.conv(x)
        x = activation(net.bn(x) if normed else x)
        kept.append(x.detach().clone())
        return net.out(x.flatten(1))

    model = Net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), out=nn.Linear(4 * 4 * 4, 2)).eval()
    seen = see(model, torch.randn(2, 3, 6, 6))
    assert [tuple(z.shape) for z, _ in seen.points["conv.weight"]] == [(2, 4, 4, 4)]
    assert seen.points["conv.weight"][0][1] == -3
    assert torch.equal(seen.values["conv.weight"][0], kept[0])
    assert seen.watch.points.norms.get("conv.weight") is (model.bn.weight if normed else None)


@pytest.mark.parametrize("how", ACTIVATIONS)
def test_activation_behind_a_linear_layer(how):
    kept = []

    def forward(net, x):
        x = ACTIVATIONS[how](net.fc(x))
        kept.append(x.detach().clone())
        return net.out(x)

    seen = see(Net(forward, fc=nn.Linear(5, 4), out=nn.Linear(4, 2)), torch.randn(2, 3, 5))
    assert [dim for _, dim in seen.points["fc.weight"]] == [-1]
    assert torch.equal(seen.values["fc.weight"][0], kept[0])


def conv_bn(**layers):
    return {"conv": nn.Conv2d(3, 4, 3, padding=1), "bn": nn.BatchNorm2d(4), **layers}


def _after_pool(net, x):
    return F.relu(F.max_pool2d(net.conv(x), 2))


def _add(net, x):
    z = net.bn(net.conv(x))
    return F.relu(z + x[:, :1])


def _add_in_place(net, x):
    z = net.bn(net.conv(x))
    z += x[:, :1]
    return F.relu_(z)


def _pre_activation(net, x):
    z = net.conv(F.relu(net.bn3(x)))
    return z + x[:, :1]


POINTS = {  # forward, and what the point is
    "conv, pool, relu": (_after_pool, lambda net, x: F.relu(F.max_pool2d(net.conv(x), 2))),
    "conv, relu, pool": (lambda net, x: F.max_pool2d(F.relu(net.conv(x)), 2), lambda net, x: F.relu(net.conv(x))),
    "conv, bn, pool": (lambda net, x: F.avg_pool2d(net.bn(net.conv(x)), 2), lambda net, x: net.bn(net.conv(x))),
    "conv, dropout, relu": (
        lambda net, x: F.relu(F.dropout(net.conv(x), 0.5, net.training)),
        lambda net, x: F.relu(net.conv(x)),
    ),
    "conv, relu, dropout": (
        lambda net, x: F.dropout(F.relu(net.conv(x)), 0.5),
        lambda net, x: F.relu(net.conv(x)),
    ),
    "conv, relu, dropout in place": (
        lambda net, x: F.dropout(F.relu(net.conv(x)), 0.5, True, True),
        lambda net, x: F.relu(net.conv(x)),
    ),
    "conv, bn, dropout in place": (
        lambda net, x: F.dropout(net.bn(net.conv(x)), 0.5, True, True),
        lambda net, x: net.bn(net.conv(x)),
    ),
    "residual behind bn": (_add, lambda net, x: net.bn(net.conv(x))),
    "residual in place": (_add_in_place, lambda net, x: net.bn(net.conv(x))),
    "pre-activation": (_pre_activation, lambda net, x: net.conv(F.relu(net.bn3(x)))),
    "conv, relu, bn": (lambda net, x: net.bn(F.relu(net.conv(x))), lambda net, x: F.relu(net.conv(x))),
    "conv, cat": (lambda net, x: F.relu(torch.cat([net.conv(x), x], 1)), lambda net, x: net.conv(x)),
    "conv, flatten": (lambda net, x: F.relu(net.conv(x).flatten(1)), lambda net, x: net.conv(x)),
    "conv, softmax": (lambda net, x: net.conv(x).softmax(1), lambda net, x: net.conv(x)),
    "conv, log_softmax": (lambda net, x: F.log_softmax(net.conv(x), 1), lambda net, x: net.conv(x)),
    "the output itself": (lambda net, x: net.conv(x), lambda net, x: net.conv(x)),
    "the activation is the output": (lambda net, x: F.relu(net.conv(x)), lambda net, x: F.relu(net.conv(x))),
    "loss inside": (lambda net, x: F.mse_loss(net.conv(x), torch.zeros(2, 4, 6, 6)), lambda net, x: net.conv(x)),
    "bias by hand": (
        lambda net, x: F.relu(F.conv2d(x, net.conv.weight, padding=1) + net.conv.bias.view(-1, 1, 1)),
        lambda net, x: F.relu(net.conv(x)),
    ),
    "buffer as scale": (lambda net, x: F.relu(net.conv(x) * net.scale), lambda net, x: F.relu(net.conv(x) * net.scale)),
    "group norm": (lambda net, x: F.silu(net.gn(net.conv(x))), lambda net, x: F.silu(net.gn(net.conv(x)))),
    "layer norm": (
        lambda net, x: F.layer_norm(net.conv(x), (4, 6, 6)),
        lambda net, x: F.layer_norm(net.conv(x), (4, 6, 6)),
    ),
    "instance norm": (lambda net, x: F.instance_norm(net.conv(x)), lambda net, x: F.instance_norm(net.conv(x))),
    "squeeze and excite": (
        lambda net, x: (z := F.relu(net.conv(x))) * torch.sigmoid(net.fc(z.mean((2, 3))))[:, :, None, None],
        lambda net, x: F.relu(net.conv(x)),
    ),
    "gate of another branch": (
        lambda net, x: torch.sigmoid(net.conv(x)) * x[:, :1],
        lambda net, x: torch.sigmoid(net.conv(x)),
    ),
    "shapes and values read": (
        lambda net, x: F.relu(z) if (z := net.conv(x)).shape[1] == 4 and z.size(0) and z.detach().sum() > -1e9 else z,
        lambda net, x: F.relu(net.conv(x)),
    ),
    "rows folded and unfolded": (
        lambda net, x: F.relu(net.conv(x).view(1, 2, 4, 6, 6).flatten(0, 1)),
        lambda net, x: F.relu(net.conv(x)),
    ),
    "split into groups": (
        lambda net, x: F.relu(net.conv(x).view(2, 2, 2, 6, 6)),
        lambda net, x: net.conv(x),
    ),
    "cast": (lambda net, x: F.relu(net.conv(x).double()).float(), lambda net, x: F.relu(net.conv(x).double())),
    "padding_mode": (lambda net, x: F.relu(net.reflect(x)), lambda net, x: F.relu(net.reflect(x))),
}


@pytest.mark.parametrize("case", POINTS)
def test_point_is_where_the_data_goes(case):
    forward, point = POINTS[case]
    layers = conv_bn(gn=nn.GroupNorm(2, 4), bn3=nn.BatchNorm2d(3), fc=nn.Linear(4, 4))
    model = Net(forward, **layers, reflect=nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")).eval()
    model.register_buffer("scale", torch.rand(4, 1, 1))
    x = torch.randn(2, 3, 6, 6)
    name = "reflect.weight" if case == "padding_mode" else "conv.weight"
    seen = see(model, x, [name])
    assert len(seen.values[name]) == 1
    torch.testing.assert_close(seen.values[name][0], point(model, x), rtol=0, atol=0)
    if case not in ("residual in place", "conv, relu, dropout in place", "conv, bn, dropout in place"):
        assert torch.equal(seen.points[name][0][0], seen.values[name][0])


def test_norm_behind_the_activation_is_told_and_not_passed():
    model = Net(lambda net, x: net.bn(F.relu(net.conv(x))), **conv_bn())
    seen = see(model, torch.randn(2, 3, 6, 6))
    assert seen.watch.points.norms == {"conv.weight": model.bn.weight}


def test_torch_batch_norm_takes_its_weight_elsewhere():
    def forward(net, x):
        bn = net.bn
        return torch.batch_norm(
            net.conv(x), bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, 1e-5, False
        )

    model = Net(forward, **conv_bn())
    assert see(model, torch.randn(2, 3, 6, 6)).watch.points.norms == {"conv.weight": model.bn.weight}


def test_norm_without_a_scale_is_not_told():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU())
    seen = see(model, torch.randn(2, 3, 6, 6))
    assert not seen.watch.points.norms and seen.values["0.weight"][0].min() == 0


def test_shared_functional_relu_as_hooks_on_modules_see_it():
    relu = nn.ReLU(inplace=True)
    modules = nn.Sequential(nn.Linear(4, 6), relu, nn.Linear(6, 5), relu, nn.Linear(5, 3))
    hooked = []
    handle = relu.register_forward_hook(lambda module, args, output: hooked.append(output.detach().clone()))
    x = torch.randn(7, 4)
    modules(x)
    handle.remove()
    functional = Net(lambda net, x: net.c(F.relu(net.b(F.relu(net.a(x))))), a=modules[0], b=modules[2], c=modules[4])
    for model, names in ((modules, ("0.weight", "2.weight")), (functional, ("a.weight", "b.weight"))):
        seen = see(model, x)
        for name, expected in zip(names, hooked):
            assert torch.equal(seen.values[name][0], expected)


def test_layer_used_twice_gives_a_point_for_each_use():
    model = Net(lambda net, x: net.fc(F.relu(net.fc(x))), fc=nn.Linear(4, 4))
    seen = see(model, torch.randn(3, 4))
    first, second = seen.values["fc.weight"]
    assert first.min() == 0 and torch.equal(second, seen.result)
    assert seen.watch.uses == {"fc.weight": 2} and len(seen.inputs["fc.weight"]) == 2
    assert torch.equal(seen.inputs["fc.weight"][1].input, first)


def test_tied_weights_are_one():
    model = Net(lambda net, x: F.linear(torch.tanh(net.a(x)), net.b.weight), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    model.b.weight = model.a.weight
    assert see(model, torch.randn(3, 4)).watch.uses == {"a.weight": 2}


def test_tied_embedding_is_told_as_unknown_and_still_seen():
    model = Net(lambda net, x: F.linear(net.e(x), net.e.weight), e=nn.Embedding(7, 4))
    seen = see(model, torch.randint(0, 7, (3, 5)))
    assert seen.watch.unknown == {"e.weight": "embedding"} and seen.watch.uses == {"e.weight": 1}
    assert seen.points["e.weight"][0][0].shape == (3, 5, 7)


def test_order_is_that_of_the_data_flow():
    seen = see(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.ones(1, 2))
    expected = [("input", "0.weight"), ("point", "0.weight"), ("input", "2.weight"), ("point", "2.weight")]
    assert seen.order == expected


MATRIX = {  # forward with a weight of (3, 4), and whether its units lie along dim 1
    "F.linear": (lambda x, w: F.linear(x, w), False, (5, 4)),
    "F.linear by keyword": (lambda x, w: F.linear(input=x, weight=w), False, (5, 4)),
    "x @ w": (lambda x, w: x @ w, True, (5, 3)),
    "x @ w.t()": (lambda x, w: x @ w.t(), False, (5, 4)),
    "x @ w.T": (lambda x, w: x @ w.T, False, (5, 4)),
    "x @ w.mT": (lambda x, w: x @ w.mT, False, (5, 4)),
    "x @ w.transpose": (lambda x, w: x @ w.transpose(0, 1), False, (5, 4)),
    "mm": (lambda x, w: torch.mm(x, w), True, (5, 3)),
    "x.mm": (lambda x, w: x.mm(w.permute(1, 0)), False, (5, 4)),
    "matmul": (lambda x, w: torch.matmul(x, w), True, (2, 5, 3)),
    "addmm": (lambda x, w: torch.addmm(torch.zeros(4), x, w), True, (5, 3)),
    "linear of a transpose": (lambda x, w: F.linear(x, w.t()), True, (5, 3)),
    "twice turned": (lambda x, w: x @ w.t().t(), True, (5, 3)),
    "cast": (lambda x, w: F.linear(x.double(), w.to(torch.float64)), False, (5, 4)),
    "detached": (lambda x, w: F.linear(x, w.detach()), False, (5, 4)),
    "data": (lambda x, w: F.linear(x, w.data), False, (5, 4)),
}


@pytest.mark.parametrize("case", MATRIX)
def test_matrix_products(case):
    forward, transposed, shape = MATRIX[case]
    model = Net(lambda net, x: forward(x, net.weight).relu())
    model.weight = nn.Parameter(torch.randn(3, 4))
    x = torch.randn(shape)
    seen = see(model, x)
    (use,) = seen.inputs["weight"]
    assert use.transposed is transposed and use.rows is None and not seen.watch.unknown
    assert torch.equal(use.input.float(), x)
    product = use.input @ (model.weight if transposed else model.weight.t()).to(use.input)
    assert torch.allclose(seen.result, product.relu(), atol=1e-6)
    assert torch.equal(seen.points["weight"][0][0], seen.result)


CONVOLUTIONS = {
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 9), F.conv1d),
    "2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 4, 9, 8), F.conv2d),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 9, 8), F.conv2d),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 9, 8), F.conv2d),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9, 8), F.conv2d),
    "unbatched": (nn.Conv2d(4, 6, 3), (4, 9, 8), F.conv2d),
    "3d": (nn.Conv3d(4, 6, 2, bias=False), (2, 4, 5, 5, 5), F.conv3d),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, dilation=2), (2, 4, 9), F.conv_transpose1d),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 3, padding=1), (2, 4, 9, 8), F.conv_transpose2d),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2), (2, 4, 5, 5, 5), F.conv_transpose3d),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_can_be_computed_again_from_their_record(case):
    layer, shape, function = CONVOLUTIONS[case]
    seen = see(layer, torch.randn(shape))
    (use,) = seen.inputs["weight"]
    settings = {"stride": use.stride, "padding": use.padding, "dilation": use.dilation, "groups": use.groups}
    assert torch.allclose(function(use.input, layer.weight, layer.bias, **settings), seen.result, atol=1e-6)
    assert use.transposed is case.startswith("transposed") and use.kind == function.__name__
    assert len(use.stride) == len(use.dilation) == layer.weight.dim() - 2
    ((z, dim),) = seen.points["weight"]
    assert z.shape[dim] == 6


def test_functional_convolution_with_defaults():
    model = Net(lambda net, x: F.conv2d(x, net.conv.weight), conv=nn.Conv2d(3, 4, 3))
    (use,) = see(model, torch.randn(1, 3, 5, 5)).inputs["conv.weight"]
    assert (use.stride, use.padding, use.dilation, use.groups) == ((1, 1), (0, 0), (1, 1), 1)


UNKNOWN = {
    "bilinear": (nn.Bilinear(3, 3, 2), lambda net, x: net.layer(x, x), "bilinear"),
    "lstm": (nn.LSTM(3, 2), lambda net, x: net.layer(x)[0], "lstm"),
    "gru cell": (nn.GRUCell(3, 2), lambda net, x: net.layer(x), "gru_cell"),
    "einsum": (nn.Linear(3, 2), lambda net, x: torch.einsum("bi,oi->bo", x, net.layer.weight), "einsum"),
    "weight first": (nn.Linear(3, 2), lambda net, x: net.layer.weight @ x.t(), "matmul"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_uses_are_named(case):
    layer, forward, function = UNKNOWN[case]
    model = Net(forward, layer=layer)
    names = [name for name, p in model.named_parameters() if "weight" in name]
    seen = see(model, torch.randn(4, 3), names)
    assert seen.watch.unknown == dict.fromkeys(names, function) and not seen.watch.uses


def test_reading_a_weight_is_no_use():
    def forward(net, x):
        assert net.fc.weight.shape == (2, 3) and net.fc.weight.dtype == torch.float32 and net.fc.weight.numel() == 6
        return net.fc(x)

    assert not see(Net(forward, fc=nn.Linear(3, 2)), torch.randn(4, 3)).watch.unknown


def test_addmm_on_a_matrix_of_all_tokens():
    """GPT-2's Conv1D: samples are told apart behind the product; behind the output layer they are not mixed up."""

    def conv1d(net, x):
        return torch.addmm(net.fc.bias, x.view(-1, x.size(-1)), net.fc.weight.t()).view(*x.shape[:-1], -1)

    x = torch.randn(2, 5, 3)
    for after in (F.gelu, lambda x: x, lambda x: F.dropout(x, 0.5, False) + torch.ones(2, 5, 4)):
        model = Net(lambda net, x: after(conv1d(net, x)), fc=nn.Linear(3, 4))
        ((z, dim),) = see(model, x).points["fc.weight"]
        assert z.shape == (2, 5, 4) and dim == -1
        assert torch.allclose(z, F.gelu(model.fc(x)) if after is F.gelu else model.fc(x), atol=1e-6)
    model = Net(lambda net, x: F.cross_entropy(net.fc(x).view(-1, 4), torch.zeros(10).long()), fc=nn.Linear(3, 4))
    assert see(model, x).points["fc.weight"][0][0].shape == (2, 5, 4)


def test_gradient_reaches_the_point():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 2))
    gradients = {}
    on_activation = lambda name, z, *_: z.register_hook(lambda g: gradients.setdefault(name, g))  # noqa: E731
    with ForwardObserver().subscribe({"0.weight": model[0].weight}, on_activation=on_activation).installed(model):
        output = model(torch.randn(2, 3, 6, 6))
    output.sum().backward()
    assert torch.allclose(gradients["0.weight"].flatten(1), model[4].weight.sum(0).expand(2, -1))


def test_gradient_at_a_point_that_is_then_added_to_in_place():
    model = Net(_add_in_place, **conv_bn())
    gradients = []
    on_activation = lambda name, z, *_: z.register_hook(gradients.append)  # noqa: E731
    with ForwardObserver().subscribe({"conv.weight": model.conv.weight}, on_activation=on_activation).installed(model):
        output = model(torch.randn(2, 3, 6, 6))
    output.sum().backward()
    assert torch.equal(gradients[0], (output > 0).float())


def test_exception_leaves_nothing_behind():
    model = Net(lambda net, x: net.b(F.relu(net.a(x))), a=nn.Linear(3, 4), b=nn.Linear(5, 2))
    seen = Seen(model)
    with seen.watch.installed(model):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="shapes"):
                model(torch.randn(2, 3))
            assert not _get_current_function_mode_stack()
        assert seen.order == [("input", "a.weight"), ("point", "a.weight"), ("input", "b.weight")] * 2
        model.b = nn.Linear(4, 2)
        model(torch.randn(2, 3))
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_failed_forward_delivers_nothing_more():
    def forward(net, x):
        net.a(x)
        raise ValueError("stop")

    model = Net(forward, a=nn.Linear(3, 4))
    seen = Seen(model)
    with seen.watch.installed(model), pytest.raises(ValueError, match="stop"):
        try:
            raise KeyError
        except KeyError:  # the model may be called while another error is handled
            model(torch.randn(2, 3))
    assert seen.order == [("input", "a.weight")]


def test_forward_inside_an_except_block_is_no_failure():
    model = nn.Linear(3, 4)
    seen = Seen(model)
    with seen.watch.installed(model):
        try:
            raise KeyError
        except KeyError:
            model(torch.randn(2, 3))
    assert len(seen.points["weight"]) == 1


def test_callback_that_raises_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def refuse(name, z, dim, samples):
        raise ValueError(name)

    watch = ForwardObserver().subscribe(dict(model.named_parameters()), on_activation=refuse)
    with watch.installed(model):
        with pytest.raises(ValueError, match=r"0\.weight"):
            model(torch.randn(2, 3))
        assert not _get_current_function_mode_stack()
        with pytest.raises(ValueError, match=r"0\.weight"):
            model(torch.randn(2, 3))


def test_interrupt_is_made_good_at_the_next_forward_or_removal():
    stop = [True]

    def forward(net, x):
        x = net.a(x)
        if stop[0]:
            raise KeyboardInterrupt
        return x

    model = Net(forward, a=nn.Linear(3, 4))
    seen = Seen(model)
    seen.watch.install(model)
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(2, 3))
    stop[0] = False
    model(torch.randn(2, 3))
    assert not _get_current_function_mode_stack() and len(seen.points["a.weight"]) == 1
    stop[0] = True
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(2, 3))
    seen.watch.remove()
    assert not _get_current_function_mode_stack()


def test_recursive_root():
    def forward(net, x):
        return net.a(x) if x.shape[0] == 1 else torch.cat([net(part) for part in x.split(1)])

    model = Net(forward, a=nn.Linear(3, 4))
    seen = see(model, torch.randn(3, 3))
    assert len(seen.points["a.weight"]) == 3


def test_other_modes_go_on():
    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Count.calls += 1
            return func(*args, **(kwargs or {}))

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    seen = Seen(model)
    with Count(), seen.watch.installed(model), torch.device("cpu"):
        model(torch.ones(2, 3))
        assert len(_get_current_function_mode_stack()) == 2
    assert Count.calls > 1 and len(seen.points["0.weight"]) == 1


def test_only_the_model_is_watched():
    model = nn.Linear(3, 3)
    seen = Seen(model)
    with seen.watch.installed(model):
        F.linear(torch.ones(1, 3), model.weight)
        assert not seen.order
        output = model(torch.ones(1, 3))
        (output @ model.weight).sum().backward()
    assert seen.watch.uses == {"weight": 1} and not seen.watch.unknown


def test_install_for_training_and_remove():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    seen = Seen(model)
    seen.watch.install(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(1, 4):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        assert len(seen.points["0.weight"]) == step
    seen.watch.remove()
    seen.watch.remove()
    model(torch.ones(2, 3))
    assert len(seen.points["0.weight"]) == 3 and not model._forward_hooks and not model._forward_pre_hooks


def test_copies_of_an_installed_model_watch_nothing():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    seen = Seen(model)
    seen.watch.install(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)
    for other in copies:
        assert torch.equal(other(torch.ones(2, 3)), torch.relu(other[0](torch.ones(2, 3))))
    assert not seen.order and not _get_current_function_mode_stack()
    seen.watch.remove()


def test_watch_keeps_no_tensor():
    import weakref

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    alive, tensors = [], []

    def on_activation(name, z, dim, samples):
        alive.append([ref() is not None for ref in tensors])
        tensors.append(weakref.ref(z))

    with (
        torch.no_grad(),
        ForwardObserver().subscribe(dict(model.named_parameters()), on_activation=on_activation).installed(model),
    ):
        model(torch.ones(2, 3))
    # Sequential holds a layer's input while it runs; what came before is gone.
    assert alive == [[], [False], [False, False]] or alive == [[], [False], [False, True]]
    assert all(ref() is None for ref in tensors)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    def forward(net, x):
        return net.out(checkpoint(lambda x: F.relu(net.bn(net.conv(x))), x, use_reentrant=reentrant).flatten(1))

    model = Net(forward, **conv_bn(out=nn.Linear(144, 2)))
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    plain = copy.deepcopy(model)
    plain(x).sum().backward()
    gradients = {}
    seen = Seen(model)

    def on_activation(name, z, dim, samples):
        if z.requires_grad:
            z.register_hook(lambda g: gradients.setdefault(name, g))
        seen.on_activation(name, z, dim, samples)

    watch = ForwardObserver().subscribe(seen.watch.parameters, on_layer_call=seen.on_input, on_activation=on_activation)
    with watch.installed(model):
        model(x).sum().backward()
    assert watch.uses == {"conv.weight": 1, "out.weight": 1} and len(seen.points["conv.weight"]) == 1
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        assert torch.equal(ours.grad, theirs.grad)
    assert ("conv.weight" in gradients) is True or reentrant


def test_autocast():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    with torch.autocast("cpu", torch.bfloat16):
        seen = see(model, torch.randn(2, 3, 6, 6))
    assert set(seen.points) == {"0.weight", "4.weight"} == set(seen.inputs)
    assert seen.values["0.weight"][0].dtype == torch.bfloat16 and seen.values["0.weight"][0].min() == 0


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_transformer_encoder_takes_no_fast_path(grad, training):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).train(training)
    mask = torch.tensor([[False] * 4, [False, False, True, True]])
    x = torch.randn(2, 4, 8)
    seen = Seen(model)
    with torch.set_grad_enabled(grad), seen.watch.installed(model):
        output = model(x, src_key_padding_mask=mask)
    names = {f"layers.{i}.{n}.weight" for i in (0, 1) for n in ("linear1", "linear2", "self_attn.out_proj")}
    packed = {f"layers.{i}.self_attn.in_proj_weight" for i in (0, 1)}
    seen_all = Seen(model, names | packed)
    with torch.set_grad_enabled(grad), seen_all.watch.installed(model):
        model(x, src_key_padding_mask=mask)
    assert set(seen_all.points) == set(seen_all.inputs) == names | packed
    assert all(use.rows is None for name in packed for use in seen_all.inputs[name])
    assert all(values[0].min() == 0 for name, values in seen_all.values.items() if "linear1" in name)
    expected = model(x, src_key_padding_mask=mask)
    assert torch.allclose(output[0], expected[0], atol=1e-5)


def test_encoder_layer_in_eval_under_no_grad():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():
        seen = see(model, torch.randn(2, 4, 8), ["self_attn.in_proj_weight", "linear1.weight"])
    assert seen.watch.uses == {"self_attn.in_proj_weight": 1, "linear1.weight": 1}


def test_cross_attention_uses_a_packed_weight_by_rows():
    model = nn.MultiheadAttention(8, 2)
    seen = Seen(model, ["in_proj_weight"])
    with seen.watch.installed(model):
        memory = torch.randn(5, 3, 8)
        model(torch.randn(4, 3, 8), memory, memory)
        model(torch.randn(4, 3, 8), memory, torch.randn(5, 3, 8))
    assert [use.rows for use in seen.inputs["in_proj_weight"]] == [(0, 8), (8, 24), (0, 8), (8, 16), (16, 24)]
    assert not seen.points and not seen.watch.unknown


@pytest.mark.parametrize("wrapped", [True, False])
def test_compiled_model_runs_unseen_and_eager_calls_are_seen(wrapped):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    seen = Seen(model)
    if wrapped:
        compiled = torch.compile(model, backend="eager", fullgraph=True)
    else:
        model.compile(backend="eager", fullgraph=True)
        compiled = model
    x = torch.randn(2, 3)
    with seen.watch.installed(compiled):
        compiled(x).sum().backward()
        assert not seen.order and not _get_current_function_mode_stack()
        with torch.compiler.set_stance("force_eager"):
            compiled(x)
        assert seen.watch.uses == {"0.weight": 1, "2.weight": 1}
        if wrapped:
            model(x)
            assert seen.watch.uses == {"0.weight": 2, "2.weight": 2}
    compiled(x)
    assert not _get_current_function_mode_stack()
