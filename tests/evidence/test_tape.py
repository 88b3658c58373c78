"""A tape: one forward pass replayed from a tensor onward."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from ignite_prune.evidence.forward.observer import Watch, watching
from ignite_prune.evidence.forward.tape import Cut, Tape
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

    def __init__(self, model, call):
        self.model, self.call = model, call
        self.parameters = {n: p for n, p in model.named_parameters() if p.dim() > 1}

    def cuts(self):
        cuts = {}
        with watching(self.model, Watch(self.parameters, on_activation=lambda n, z, *_: cuts.setdefault(n, Cut.of(z)))):
            tape = Tape.record(self.model, self.call)
        return tape, cuts

    def evaluate(self, name, value):
        watch = Watch({name: self.parameters[name]}, on_activation=lambda n, z, *_: z.copy_(value))
        with torch.no_grad(), watching(self.model, watch):
            return self.call()


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
    swap = Swap(model, lambda: model(x).square().mean() if loss else model(x))
    with torch.no_grad():
        plain = swap.call()
    tape, cuts = swap.cuts()
    assert torch.allclose(tape.result, plain, atol=1e-5) and not _get_current_function_mode_stack()
    plain = tape.result.clone()  # a fast path of torch, which a tape does not take, is as good to the last bits only
    kept = {name: cut.value.clone() for name, cut in cuts.items()}
    recorded = [t.clone() for step in tape.steps for t in [step.result] if isinstance(t, torch.Tensor)]
    for name, cut in cuts.items():
        assert tape.is_exact(cut), name
        assert torch.equal(tape.replay(cut, cut.value), plain)
        for value in (torch.zeros_like(cut.value), torch.randn_like(cut.value)):
            before = value.clone()
            expected = swap.evaluate(name, value)
            assert torch.equal(tape.replay(cut, value), expected), name
            assert torch.equal(tape.rerun(cut, value), expected), name
            assert torch.equal(value, before)
    assert all(torch.equal(cut.value, kept[name]) for name, cut in cuts.items())
    now = [step.result for step in tape.steps if isinstance(step.result, torch.Tensor)]
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(recorded, now)) and torch.equal(tape.result, plain)


def test_only_what_depends_on_the_cut_runs():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    tape, cuts = Swap(model, lambda: model(torch.ones(5, 3))).cuts()
    assert [len(tape._plan(cut).steps) for cut in cuts.values()] == [3, 1, 0]


def test_side_branches_do_not_run():
    def forward(net, x):
        z = F.relu(net.a(x))
        net.log = z.mean()
        return net.b(z)

    model = Net(forward, **linear((3, 4), (4, 2))).eval()
    tape, cuts = Swap(model, lambda: model(torch.ones(5, 3))).cuts()
    assert [step for step in tape._plan(cuts["a.weight"]).steps if "mean" in str(tape.steps[step].func)] == []


def test_tensor_as_it_stands_now_and_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.SiLU(inplace=True), nn.Linear(4, 2)).eval()
    hooked = []
    model[0].register_forward_hook(lambda module, args, output: hooked.append((output, Cut.of(output))))
    x = torch.randn(5, 3)
    tape = Tape.record(model, lambda: model(x))
    tensor, cut = hooked[0]
    value = torch.randn(5, 4)
    assert torch.equal(tape.replay(tensor, value), model[2](value))
    assert torch.equal(tape.replay(cut, value), model[2](F.silu(value)))
    assert tape.is_exact(tensor) and tape.is_exact(cut)


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


@torch.jit.script
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


UNSAFE = {
    "item": reads_item,
    "bool": reads_bool,
    "numpy": reads_numpy,
    "tolist": reads_list,
    "a function that is not seen": lambda net, x: net.b(double(F.relu(net.a(x)))),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_a_tape_cannot_follow_is_not_exact(case):
    model = Net(UNSAFE[case], **linear((3, 4), (4, 2))).eval()
    x = torch.randn(5, 3)
    swap = Swap(model, lambda: model(x))
    tape, cuts = swap.cuts()
    assert not tape.is_exact(cuts["a.weight"])
    assert tape.is_exact(cuts["b.weight"])
    value = torch.rand_like(cuts["a.weight"].value)
    result = tape.rerun(cuts["a.weight"], value)
    with torch.no_grad():  # a positive value goes through the relu as it is
        model.function = lambda net, x: UNSAFE[case](SimpleNamespace(a=lambda x: value, b=net.b), x)
        assert torch.equal(result, model(x))


def test_memory_read_through_an_older_view_is_not_exact():
    cuts = []

    def forward(net, x):
        z = net.a(x)
        view = z.view(-1)
        F.relu_(z)
        cuts.append(Cut.of(z))
        return net.b(z) + view.sum()

    model = Net(forward, **linear((3, 4), (4, 2))).eval()
    x = torch.randn(5, 3)
    tape = Tape.record(model, lambda: model(x))
    assert not tape.is_exact(cuts[0])
    expected = model.b(torch.ones(5, 4)) + 20
    assert torch.equal(tape.rerun(cuts[0], torch.ones(5, 4)), expected)


def test_custom_function_is_followed():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    model = Net(lambda net, x: net.b(Double.apply(F.relu(net.a(x)))), **linear((3, 4), (4, 2))).eval()
    tape, cuts = Swap(model, lambda: model(torch.ones(5, 3))).cuts()
    assert tape.is_exact(cuts["a.weight"])


def test_result_that_does_not_depend_on_the_cut():
    def forward(net, x):
        net.a(x)
        return net.b(x)

    model = Net(forward, **linear((3, 4), (3, 2))).eval()
    tape, cuts = Swap(model, lambda: model(torch.ones(5, 3))).cuts()
    cut = cuts["a.weight"]
    assert torch.equal(tape.replay(cut, torch.zeros(5, 4)), tape.result) and not tape.is_exact(cut)


def test_stateful_model_is_not_exact():
    model = Net(into_given_buffer, **linear((3, 4))).eval()
    model.register_buffer("memory", torch.ones(4))
    tape, cuts = Swap(model, lambda: model(torch.ones(5, 3))).cuts()
    cut, before = cuts["a.weight"], model.memory.clone()
    assert torch.equal(tape.replay(cut, cut.value), tape.result)
    assert torch.equal(model.memory, before)
    assert not tape.is_exact(cut)


def test_a_given_tensor_is_never_written_to():
    model = nn.Linear(3, 2).eval()
    x = torch.ones(5, 3)
    tape = Tape.record(model, lambda: model(x.contiguous()))
    assert tape.rerun(x, torch.zeros(5, 3)) is None and torch.equal(x, torch.ones(5, 3))
    assert torch.equal(tape.replay(x, torch.zeros(5, 3)), model.bias.expand(5, 2))


def test_replacement_of_other_strides():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(0), nn.Linear(20, 2)).eval()
    x = torch.randn(5, 3)
    tape, cuts = Swap(model, lambda: model(x)).cuts()
    value = torch.randn(4, 5).t()
    assert torch.equal(tape.replay(cuts["0.weight"], value), model[3](value.reshape(-1)))


def test_in_inference_mode_and_with_gradients_on():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 3)
    with torch.inference_mode():
        tape, cuts = Swap(model, lambda: model(x)).cuts()
    result = tape.replay(cuts["0.weight"], torch.zeros(5, 4))
    assert not result.requires_grad and tape.is_exact(cuts["0.weight"])


def test_refusals():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="eval mode"):
        Tape.record(model, lambda: model(torch.ones(1, 3)))
    model.eval()
    with pytest.raises(TypeError, match="should return a tensor"):
        Tape.record(model, lambda: None)
    tape, cuts = Swap(model, lambda: model(torch.ones(1, 3))).cuts()
    with pytest.raises(ValueError, match=r"of shape \(1, 2\)"):
        tape.replay(cuts["weight"], torch.zeros(2, 2))
    with pytest.raises(ValueError, match="float64"):
        tape.replay(cuts["weight"], torch.zeros(1, 2, dtype=torch.float64))
    assert not _get_current_function_mode_stack()


def test_exception_while_recording_leaves_no_mode():
    model = nn.Linear(3, 2).eval()
    with pytest.raises(RuntimeError):
        Tape.record(model, lambda: model(torch.ones(1, 4)))
    assert not _get_current_function_mode_stack()
