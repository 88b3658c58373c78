"""Summary: exact counts, FLOPs by hand, every parameter once, and the model untouched."""

import copy

import pytest
import torch
from torch import nn

from ignite_prune import allocation, measure, pattern, prune_model, shrink, trace
from ignite_prune.export import SparseLinear
from ignite_prune.measure.pattern_name import pattern_name
from tests.models import attention_net, batches, small_net


def conv_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10))


def test_a_net_by_hand():
    model, x = conv_net(), torch.randn(2, 3, 8, 8)
    masks = prune_model(model, sparsity=0.75, allocation=allocation.Uniform())
    found = measure.summary(model, masks, x)
    conv, norm, linear = found.layers
    assert (conv.name, conv.kind, conv.shape) == ("0", "Conv2d", (8, 3, 3, 3))
    assert (conv.parameters, conv.kept) == (224, 62) and (linear.parameters, linear.kept) == (2890, 730)
    assert (norm.parameters, norm.kept, norm.pattern) == (16, 16, "dense")
    assert (conv.flops, conv.effective_flops) == (2 * 2 * 36 * 216, 36 * 216)  # two samples, 6×6 positions, 8·3·3·3
    assert (linear.flops, linear.effective_flops) == (2 * 2 * 2880, 2880) and norm.flops == 0
    assert found.flops == conv.flops + linear.flops and found.effective_flops == found.flops / 4
    assert (found.parameters, found.kept, found.bytes) == (3130, 808, 4 * (3130 + 16) + 8)
    assert 0 < conv.seconds < found.seconds * 10 and found.sparsity == 1 - 808 / 3130
    assert measure.summary(model).kept == 808  # zeros alone say the same


@pytest.mark.parametrize("make", [small_net, attention_net, conv_net, lambda: nn.GRU(4, 8, 2), lambda: nn.ReLU()])
def test_every_parameter_is_counted_once(make):
    model = make()
    found = measure.summary(model)
    assert found.parameters == found.kept == sum(each.numel() for each in model.parameters())
    assert str(found).splitlines()[-1].startswith("total") and repr(found) == str(found)


def test_tied_and_unused_and_inner_layers():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8, 8))
            self.one, self.two, self.unused = nn.Linear(8, 8, False), nn.Linear(8, 8, False), nn.Linear(8, 8)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x @ self.scale))

    model = Outer()
    found = measure.summary(model, None, torch.randn(3, 8))
    rows = {each.name: each for each in found.layers}
    assert [rows[each].parameters for each in ("", "one", "two", "unused")] == [64, 64, 0, 72]
    assert [rows[each].flops for each in ("", "one", "two", "unused")] == [384, 384, 384, 0]
    assert found.flops == 3 * 384 and rows["unused"].seconds != rows["unused"].seconds  # NaN: it is not called


def test_recurrent_layers_have_flops():
    found = measure.summary(nn.LSTM(8, 16, 2, bidirectional=True), None, torch.randn(5, 3, 8))
    weights = 2 * (64 * 8 + 64 * 16 + 64 * 32 + 64 * 16)
    assert found.flops == found.effective_flops == 2 * 15 * weights


def test_flops_are_those_of_the_structure():
    model, (x, _) = small_net(), batches(1)[0]
    found = measure.summary(model, None, x)
    assert found.flops == trace(model, x).flops() == sum(each.flops for each in found.layers)


def test_a_sparse_layer_is_counted_as_its_weight():
    model, x = nn.Sequential(nn.Linear(64, 64)).eval(), torch.randn(4, 64)
    prune_model(model, sparsity=0.75)
    sparse = nn.Sequential(SparseLinear(model[0])).eval()
    for before, after in zip(measure.summary(model, None, x).layers, measure.summary(sparse, None, x).layers):
        assert (before.parameters, before.kept, before.flops, before.effective_flops) == (
            (after.parameters, after.kept, after.flops, after.effective_flops)
        )
    shown = str(measure.compare(model, sparse))
    assert "16,640  ⇒  8,708  0.523" in shown  # 1,024 values and indices, 65 row ends, a bias


def test_before_and_after_slicing():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    before = copy.deepcopy(model)
    shrink(model, trace(model, x).masks({"0.weight": torch.arange(8) < 4}), x)
    lines = str(measure.compare(before, model, x)).splitlines()
    assert [" ".join(each.split()) for each in lines[2:5]] == [
        "parameters 58 ⇒ 30 0.517",
        "kept 58 ⇒ 30 0.517",
        "bytes in memory 232 ⇒ 120 0.517",
    ]
    assert " ".join(lines[5].split()) == "FLOPs 288 ⇒ 144 0.500" and "latency" in lines[-1]


@pytest.mark.parametrize(
    "pattern_, name",
    [
        (pattern.Unstructured(), "unstructured"),
        (pattern.NofM(2, 4), "2:4"),
        (pattern.NofM(2, 4, dim=0), "2:4, dim=0"),
        (pattern.NofM(4, 8), "4:8"),
        (pattern.Block((4, 4)), "blocks 4x4"),
        (pattern.Channel(0), "rows"),
        (pattern.Channel(1), "columns"),
    ],
    ids=str,
)
def test_patterns_are_named(pattern_, name):
    for model in (nn.Linear(32, 32), nn.Conv2d(32, 32, 3)):
        if isinstance(pattern_, pattern.Block) and isinstance(model, nn.Conv2d):
            continue
        assert pattern_name(prune_model(model, sparsity=0.5, pattern=pattern_)["weight"]) == name
    assert pattern_name(torch.ones(4, 4).bool()) == "dense" and pattern_name(torch.zeros(4).bool()) == "empty"


def test_the_model_is_not_changed():
    model = conv_net().train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    measure.summary(model, None, torch.randn(2, 3, 8, 8))
    measure.latency(model, torch.randn(2, 3, 8, 8), min_run_time=0.01)
    assert model.training and all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_latency():
    timing = measure.latency(nn.Linear(64, 64), torch.randn(8, 64), min_run_time=0.02, threads=1)
    assert 0 < timing.seconds < 0.1 and timing.calls > 10 and (timing.threads, timing.device) == (1, "cpu")
    assert timing.peak_bytes is None and "1 thread, cpu" in str(timing)
    small = measure.latency(nn.Linear(16, 16), torch.randn(1, 16), min_run_time=0.02)
    large = measure.latency(nn.Linear(1024, 1024), torch.randn(64, 1024), min_run_time=0.02)
    assert small.seconds < large.seconds


def test_bad_arguments():
    model = nn.Sequential(nn.Linear(4, 4))
    x = torch.ones(1, 4)
    for error, call in (
        (TypeError, lambda: measure.summary("model")),
        (TypeError, lambda: measure.summary(model, 3)),
        (ValueError, lambda: measure.summary(model, {"1.weight": torch.ones(4, 4).bool()})),
        (ValueError, lambda: measure.summary(model, {"0.weight": torch.ones(4, 5).bool()})),
        (ValueError, lambda: measure.summary(model, {"0.weight": torch.ones(4, 4)})),
        (ValueError, lambda: measure.summary(model, None, torch.ones(1, 5))),
        (TypeError, lambda: measure.summary(model, None, 3)),
        (ValueError, lambda: measure.summary(model, None, x.to("meta"))),
        (ValueError, lambda: measure.latency(model, x, min_run_time=0)),
        (ValueError, lambda: measure.latency(model, x, warmup=0)),
        (ValueError, lambda: measure.latency(model, x, threads=0)),
        (ValueError, lambda: measure.latency(model, torch.ones(1, 5))),
        (ValueError, lambda: measure.latency(nn.Linear(4, 4, device="meta"), x)),
    ):
        with pytest.raises(error):
            call()
    assert not model[0]._forward_hooks
