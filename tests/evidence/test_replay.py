"""A replay: one forward pass evaluated again from an evaluation point onward."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.evidence.forward.replay import PassReplay
from tests.models import Net


class Block(nn.Module):
    def __init__(self, channels=4, inplace=True):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace)
        self.inplace = inplace

    def forward(self, x):
        z = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            z += x
        else:
            z = z + x
        return self.relu(z)


def residual(inplace):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace),
        Block(inplace=inplace),
        Block(inplace=inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class Swap:
    """Whole-network evaluation with a value written over each point, the long way."""

    def __init__(self, model, call, x):
        self.model, self.call, self.x = model, call, x
        self.parameters = {n: p for n, p in model.named_parameters() if p.dim() > 1}

    def replay(self):
        return PassReplay(self.model, self.call, self.x, self.parameters)

    def evaluate(self, name, value):
        observer = ForwardObserver()
        observer.subscribe({name: self.parameters[name]}, on_activation=lambda n, z, *_: z.copy_(value))
        with torch.no_grad(), observer.installed(self.model):
            return self.call(self.x)


def replay_of(model, x):
    return Swap(model, model, x).replay()


def dense(net, x):
    features = [x]
    for layer in (net.a, net.b):
        features.append(F.relu(layer(torch.cat(features, 1))))
    return torch.cat(features, 1)


def written_parts(net, x):
    out = x.new_zeros(x.shape[0], 6)
    out[:, :3] = F.relu(net.a(x))
    out[:, 3:].add_(net.b(x))
    return (out * 2).sum(1)


def two_results(net, x):
    values, indices = net.a(x).max(1)
    parts = {"values": values, "rest": [F.silu(net.b(x)).split(2, 1)]}
    return torch.cat([parts["values"][:, None], *parts["rest"][0]], 1) + indices[:, None]


def overwritten_after_use(net, x):
    z = F.relu(net.a(x))
    y = net.b(x)
    first = y * 2
    out = first + z
    y.mul_(0)
    return out + y


def history(net, x):
    """A recorded tensor is read at three of its ages by what depends on the cut."""
    y = net.b(x)
    z = net.a(x)
    one = z * y
    y.add_(1)
    two = z * y
    y.relu_()
    return one + two + z * y


def chunked(net, x):
    first, second = net.a(x).chunk(2, 1)
    return first * torch.sigmoid(second)


def out_argument(net, x):
    held = torch.empty(x.shape[0], 4)
    torch.mul(net.a(x), 2, out=held)
    return held.sum(1)


def into_given_buffer(net, x):
    net.memory.mul_(0.5)
    net.memory.add_(net.a(x).mean(0))
    net.memory.relu_()
    return net.memory * 2


def linear(*sizes):
    return {name: nn.Linear(i, o) for name, (i, o) in zip("abc", sizes)}


MODELS = {
    "residual": (lambda: residual(False), (2, 3, 6, 6)),
    "residual in place": (lambda: residual(True), (2, 3, 6, 6)),
    "shared relu in place": (
        lambda: Net(
            lambda net, x: net.c(net.relu(net.b(net.relu(net.a(x))))),
            **linear((4, 5), (5, 6), (6, 2)),
            relu=nn.ReLU(True),
        ),
        (3, 4),
    ),
    "silu in place": (
        lambda: Net(lambda net, x: net.b(F.silu(net.a(x), inplace=True)), **linear((4, 5), (5, 3))),
        (3, 4),
    ),
    "dense blocks, list that grows": (lambda: Net(dense, **linear((4, 5), (9, 3))), (3, 4)),
    "slices written to": (lambda: Net(written_parts, **linear((4, 3), (4, 3))), (3, 4)),
    "named tuples and dicts": (lambda: Net(two_results, **linear((4, 4), (4, 4))), (3, 4)),
    "overwritten after use": (lambda: Net(overwritten_after_use, **linear((4, 3), (4, 3))), (3, 4)),
    "read at three ages": (lambda: Net(history, **linear((4, 3), (4, 3))), (3, 4)),
    "gated": (lambda: Net(chunked, **linear((4, 6))), (3, 4)),
    "out=": (lambda: Net(out_argument, **linear((4, 4))), (3, 4)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (3, 5, 8)),
    "layer is the output": (lambda: nn.Linear(4, 3), (3, 4)),
    "flatten": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), (2, 3, 6, 6)),
}


@pytest.mark.parametrize("loss", [True, False])
@pytest.mark.parametrize("case", MODELS)
def test_replay_is_the_whole_network_with_the_value_in_its_place(case, loss):
    make, shape = MODELS[case]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    swap = Swap(model, lambda x: model(x).square().mean() if loss else model(x), x)
    with torch.no_grad():
        plain = swap.call(x)
    replay = swap.replay()
    # A fast path of torch, which an observed pass does not take, is as good to the last bits only.
    assert torch.allclose(replay.result, plain, atol=1e-5) and not _get_current_function_mode_stack()
    plain, kept = replay.result.clone(), {name: point.value.clone() for name, point in replay.points.items()}
    for name, point in replay.points.items():
        assert replay.is_exact(name), name
        assert torch.equal(replay.replay(name, point.value), plain)
        for value in (torch.zeros_like(point.value), torch.randn_like(point.value)):
            before = value.clone()
            expected = swap.evaluate(name, value)
            assert torch.equal(replay.replay(name, value), expected), name
            assert torch.equal(replay.rerun(name, value), expected), name
            assert torch.equal(value, before)
    for name, point in replay.points.items():  # recorded values never change
        assert torch.equal(point.value, kept[name]) and torch.equal(replay.replay(name, point.value), plain)
    assert torch.equal(replay.result, plain)


class Operations(TorchDispatchMode):
    """Counts the operations on tensors by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def operations(replay, name):
    value = replay.points[name].value
    replay.replay(name, value)  # compiles
    with Operations() as seen:
        replay.replay(name, value)
    return [name for name in seen.names if name not in ("detach", "t")]


def test_only_what_depends_on_the_point_runs():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    replay = replay_of(model, torch.ones(5, 3))
    assert [len(operations(replay, name)) for name in replay.points] == [3, 1, 0]


def test_side_branches_do_not_run():
    def forward(net, x):
        z = F.relu(net.a(x))
        net.log = z.mean()
        return net.b(z)

    model = Net(forward, **linear((3, 4), (4, 2))).eval()
    assert operations(replay_of(model, torch.ones(5, 3)), "a.weight") == ["addmm"]


def reads_item(net, x):
    z = F.relu(net.a(x))
    return net.b(z) / z.max().item()


def reads_bool(net, x):
    z = F.relu(net.a(x))
    return net.b(z) if z.sum() > 0 else net.b(-z)


def reads_numpy(net, x):
    z = F.relu(net.a(x))
    return net.b(z) + float(z.numpy().sum())


def reads_list(net, x):
    z = F.relu(net.a(x))
    return net.b(z) * len([v for v in z.flatten().tolist() if v > 0])


UNSAFE = {"item": reads_item, "bool": reads_bool, "numpy": reads_numpy, "tolist": reads_list}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_a_graph_cannot_follow_is_not_exact(case):
    model = Net(UNSAFE[case], **linear((3, 4), (4, 2))).eval()
    x = torch.randn(5, 3)
    replay = replay_of(model, x)
    assert not replay.is_exact("a.weight")
    assert replay.is_exact("b.weight")
    value = torch.rand_like(replay.points["a.weight"].value)
    result = replay.rerun("a.weight", value)
    with torch.no_grad():  # a positive value goes through the relu as it is
        model.function = lambda net, x: UNSAFE[case](SimpleNamespace(a=lambda x: value, b=net.b), x)
        assert torch.equal(result, model(x))


@pytest.mark.parametrize("case", UNSAFE)
def test_values_that_python_reads_after_an_in_place_operation(case):
    """Without its in-place operations such a pass may not run, or not run the same way: it is evaluated as a whole."""

    def forward(net, x):
        return UNSAFE[case](SimpleNamespace(a=lambda x: F.relu_(net.a(x)), b=net.b), x)

    model = Net(forward, **linear((3, 4), (4, 2))).eval()
    swap = Swap(model, model, torch.randn(5, 3))
    replay = swap.replay()
    assert not replay.is_exact("a.weight")
    value = torch.rand_like(replay.points["a.weight"].value)
    assert torch.equal(replay.rerun("a.weight", value), swap.evaluate("a.weight", value))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@torch.jit.script
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


def test_custom_function_is_followed():
    model = Net(lambda net, x: net.b(Double.apply(F.relu(net.a(x)))), **linear((3, 4), (4, 2))).eval()
    assert replay_of(model, torch.ones(5, 3)).is_exact("a.weight")


def test_scripted_function_is_followed_or_not_exact():
    model = Net(lambda net, x: net.b(double(F.relu(net.a(x)))), **linear((3, 4), (4, 2))).eval()
    swap = Swap(model, model, torch.randn(5, 3))
    replay = swap.replay()
    assert replay.is_exact("b.weight")
    value = torch.rand_like(replay.points["a.weight"].value)
    run = replay.replay if replay.is_exact("a.weight") else replay.rerun
    assert torch.equal(run("a.weight", value), model.b(double(value)))


def test_custom_function_between_in_place_operations():
    model = Net(lambda net, x: net.b(Double.apply(F.relu_(net.a(x)))), **linear((3, 4), (4, 2))).eval()
    swap = Swap(model, model, torch.randn(5, 3))
    replay = swap.replay()
    value = torch.rand_like(replay.points["a.weight"].value)
    assert torch.equal(replay.rerun("a.weight", value), swap.evaluate("a.weight", value))
    if replay.is_exact("a.weight"):
        assert torch.equal(replay.replay("a.weight", value), swap.evaluate("a.weight", value))


def test_memory_read_through_an_older_view():
    def forward(net, x):
        z = net.a(x)
        view = z.view(-1)
        F.relu_(z)
        return net.b(z) + view.sum()

    model = Net(forward, **linear((3, 4), (4, 2))).eval()
    swap = Swap(model, model, torch.randn(5, 3))
    replay = swap.replay()
    value = torch.ones(5, 4)
    expected = model.b(value) + 20
    assert torch.equal(replay.rerun("a.weight", value), expected)
    if replay.is_exact("a.weight"):
        assert torch.equal(replay.replay("a.weight", value), expected)


def test_result_that_does_not_depend_on_the_point():
    def forward(net, x):
        net.a(x)
        return net.b(x)

    model = Net(forward, **linear((3, 4), (3, 2))).eval()
    replay = replay_of(model, torch.ones(5, 3))
    assert torch.equal(replay.replay("a.weight", torch.zeros(5, 4)), replay.result) and not replay.is_exact("a.weight")


def test_stateful_model_is_not_exact():
    model = Net(into_given_buffer, **linear((3, 4))).eval()
    model.register_buffer("memory", torch.ones(4))
    replay = replay_of(model, torch.ones(5, 3))
    before = model.memory.clone()
    assert torch.equal(replay.replay("a.weight", replay.points["a.weight"].value), replay.result)
    assert torch.equal(model.memory, before)
    assert not replay.is_exact("a.weight")


def test_random_numbers_are_not_exact():
    model = Net(lambda net, x: net.b(F.dropout(F.relu(net.a(x)), 0.5)), **linear((3, 40), (40, 2))).eval()
    assert not replay_of(model, torch.randn(5, 3)).is_exact("a.weight")


def test_another_way_to_the_point_gives_nothing():
    def forward(net, x):
        return net.b(net.a(x)) if next(net.ways) else net.b(x)

    model = Net(forward, **linear((3, 3), (3, 2))).eval()
    model.ways = iter([True, True, False])
    replay = replay_of(model, torch.randn(5, 3))
    value = torch.zeros(5, 2)
    assert replay.rerun("b.weight", value) is not None and replay.rerun("b.weight", value) is None


def test_input_is_never_written_to():
    model, x = nn.Linear(3, 2).eval(), torch.ones(5, 3)
    replay = PassReplay(model, lambda x: model(x.contiguous()), x, dict(model.named_parameters()))
    assert torch.equal(replay.rerun("weight", torch.zeros(5, 2)), torch.zeros(5, 2))
    assert torch.equal(x, torch.ones(5, 3))


def test_input_may_be_a_mapping():
    model = Net(lambda net, x: net.b(F.relu_(net.a(x["x"]) * x["scale"])), **linear((3, 4), (4, 2))).eval()
    swap = Swap(model, model, {"x": torch.randn(5, 3), "scale": torch.tensor(2.0)})
    replay = swap.replay()
    value = torch.rand_like(replay.points["a.weight"].value)
    assert replay.is_exact("a.weight")
    assert torch.equal(replay.replay("a.weight", value), swap.evaluate("a.weight", value))


def test_value_of_other_strides():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(0), nn.Linear(20, 2)).eval()
    replay = replay_of(model, torch.randn(5, 3))
    value = torch.randn(4, 5).t()
    assert torch.equal(replay.replay("0.weight", value), model[3](value.reshape(-1)))


def test_in_inference_mode_and_with_gradients_on():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.inference_mode():
        replay = replay_of(model, torch.randn(5, 3))
    result = replay.replay("0.weight", torch.zeros(5, 4))
    assert not result.requires_grad and replay.is_exact("0.weight")


def test_refusals():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="eval mode"):
        replay_of(model, torch.ones(1, 3))
    model.eval()
    with pytest.raises(TypeError, match="should return a tensor"):
        PassReplay(model, lambda x: None, torch.ones(1, 3), {})
    replay = replay_of(model, torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"of shape \(1, 2\)"):
        replay.replay("weight", torch.zeros(2, 2))
    with pytest.raises(ValueError, match="float64"):
        replay.replay("weight", torch.zeros(1, 2, dtype=torch.float64))
    assert not _get_current_function_mode_stack()


def test_exception_while_recording_leaves_no_mode():
    model = nn.Linear(3, 2).eval()
    with pytest.raises(RuntimeError):
        replay_of(model, torch.ones(1, 4))
    assert not _get_current_function_mode_stack() and not _get_current_dispatch_mode_stack()
