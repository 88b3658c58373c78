"""Sparse layers: equal to dense ones, the same state_dict, replaced only where they are faster, and never by half."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ignite_prune import allocation, export, pattern, prune_model
from ignite_prune.export import SparseConv, SparseLinear, inference

BIG = nn.Sequential(nn.Linear(512, 768), nn.ReLU(), nn.Linear(768, 512))


def big(sparsity=0.97, pattern_=pattern.Unstructured()):
    model = copy.deepcopy(BIG)
    prune_model(model, sparsity=sparsity, allocation=allocation.Uniform(), pattern=pattern_)
    return model, torch.randn(32, 512)


def quick(monkeypatch, seconds):
    """Let every call of a module take a fixed time, by the kind of its layers, so that no test depends on load."""

    def timed(calls, *, prepare=None, **more):
        found = []
        for call, ready in zip(calls, prepare or [lambda: None] * len(calls)):
            ready()
            call()
            found.append(seconds.pop(0))
        return found

    monkeypatch.setattr(inference, "interleaved", timed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form, block", [("csr", (1, 1)), ("bsr", (4, 4)), ("bsr", (16, 16))])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sparse_layer_is_the_dense_one(dtype, form, block, bias):
    layer = nn.Linear(32, 64, bias=bias, dtype=dtype)
    prune_model(layer, sparsity=0.75, pattern=pattern.Block(block))
    sparse = SparseLinear(layer.eval(), form, block)
    assert list(sparse.state_dict()) == list(layer.state_dict()) and sparse.sparsity == 0.75
    assert torch.equal(sparse.weight, layer.weight)
    for shape in ((5, 32), (2, 3, 32), (32,), (0, 32), (1, 32), (4, 1, 2, 32)):
        x = torch.randn(shape, dtype=dtype)
        assert sparse(x).shape == layer(x).shape and sparse(x).is_contiguous()
        assert torch.allclose(sparse(x), layer(x), atol=1e-5 if dtype == torch.float32 else 1e-12)
    x = torch.randn(5, 32, dtype=dtype)
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), sparse.dense()):
        assert torch.allclose(other(x), layer(x), atol=1e-5)
    assert type(sparse.dense()) is nn.Linear and torch.equal(sparse.dense().weight, layer.weight)


@pytest.mark.parametrize("form, block", [("csr", (1, 1)), ("bsr", (4, 4))])
@pytest.mark.parametrize("dims, stride", [(1, 1), (2, 1), (2, 2), (3, 1), (2, (1, 3))])
def test_a_sparse_convolution_is_the_dense_one(form, block, dims, stride):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(8, 16, 1, stride=stride, bias=dims != 3)
    prune_model(layer, sparsity=0.75, pattern=pattern.Block(block))
    sparse = SparseConv(layer.eval(), form, block)
    assert list(sparse.state_dict()) == list(layer.state_dict()) and torch.equal(sparse.weight, layer.weight)
    for shape in ((3, 8), (1, 8), (0, 8), (8,)):
        x = torch.randn(*shape, *(4, 5, 7)[:dims])
        assert sparse(x).shape == layer(x).shape and torch.allclose(sparse(x), layer(x), atol=1e-5)
    if dims == 2:
        x = x.unsqueeze(0).to(memory_format=torch.channels_last)
        assert torch.allclose(sparse(x), layer(x), atol=1e-5)
    dense, x = copy.deepcopy(sparse).dense(), torch.randn(2, 8, *(4, 5, 7)[:dims])
    assert type(dense) is kind and torch.equal(dense(x), layer(x)) and dense.stride == layer.stride
    other = kind(8, 16, 1, stride=stride, bias=dims != 3)
    sparse.load_state_dict(other.state_dict())
    assert torch.equal(sparse.weight, other.weight)


def test_a_convolution_is_replaced_and_put_back(monkeypatch):
    model = nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1, groups=2)).eval()
    prune_model(model, sparsity=0.9, allocation=allocation.Uniform())
    x = torch.randn(2, 8, 9, 9)
    expected, layer = model(x), model[2]
    quick(monkeypatch, [3.0, 1.0, 5.0, 3.0])
    report = export.sparse_inference(model, x, formats=["csr"])
    assert report.replaced == ("2",) and [each.name for each in report.layers] == ["2"]
    assert type(model[2]) is SparseConv and torch.allclose(model(x), expected, atol=1e-5)
    export.to_dense(model)
    assert type(model[2]) is nn.Conv2d and torch.equal(model[2].weight, layer.weight)
    for odd in (nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, padding=1), nn.Linear(8, 8)):
        with pytest.raises(ValueError, match="1×1 convolution"):
            SparseConv(odd)


def test_a_sparse_layer_is_loaded_moved_and_cast():
    layer, other = nn.Linear(16, 16).eval(), nn.Linear(16, 16).eval()
    prune_model(layer, sparsity=0.5), prune_model(other, sparsity=0.8)
    sparse, x = SparseLinear(layer), torch.randn(3, 16)
    sparse(x)
    sparse.load_state_dict(other.state_dict())
    assert torch.allclose(sparse(x), other(x), atol=1e-5) and sparse.sparsity == other.weight.eq(0).sum() / 256
    assert torch.allclose(sparse.double()(x.double()), copy.deepcopy(other).double()(x.double()))
    with pytest.raises(RuntimeError, match="size mismatch"):
        sparse.load_state_dict({"weight": torch.ones(3, 3), "bias": torch.ones(16)})
    with pytest.raises(RuntimeError, match="Missing"):
        sparse.load_state_dict({"bias": torch.ones(16)})


def test_inference_alone():
    sparse = SparseLinear(nn.Linear(4, 4)).train()
    with pytest.raises(RuntimeError, match="eval"):
        sparse(torch.ones(1, 4))
    with pytest.raises(ValueError, match="coo"):
        SparseLinear(nn.Linear(4, 4), "coo")


def test_a_model_is_replaced_equal_and_put_back(monkeypatch):
    model, x = big()
    expected, state = model(x), {name: each.clone() for name, each in model.state_dict().items()}
    quick(monkeypatch, [3.0, 1.0, 2.0, 1.9, 5.0, 3.0])
    report = export.sparse_inference(model, x)
    assert report.replaced == ("0",) and (report.dense, report.sparse, report.reason) == (5.0, 3.0, "")
    assert [each.form for each in report.layers] == ["csr", "dense"] and "1.05 times" in report.layers[1].reason
    assert not model.training and torch.allclose(model(x), expected, atol=1e-5)
    assert all(torch.equal(model.state_dict()[name], each) for name, each in state.items())
    assert "1.05 times as fast" in str(report)
    export.to_dense(model)
    assert all(type(model[each]) is nn.Linear for each in (0, 2)) and torch.equal(model(x), expected)


def test_what_does_not_pay_stays(monkeypatch):
    model, x = big()
    layers = list(model)
    quick(monkeypatch, [3.0, 1.0, 3.0, 1.0, 5.0, 5.5])
    report = export.sparse_inference(model.train(), x)
    assert report.replaced == () and report.reason and all(each.reason for each in report.layers)
    assert list(model) == layers and model.training
    quick(monkeypatch, [1.0, 0.95, 1.0, 2.0, 5.0])
    report = export.sparse_inference(model, x)
    assert report.replaced == () and "no layer is faster" in str(report) and list(model) == layers


def test_an_interruption_leaves_the_model_whole(monkeypatch):
    model, x = big()
    layers = list(model)
    quick(monkeypatch, [3.0, 1.0, 3.0, 1.0])  # then pops from an empty list
    with pytest.raises(IndexError):
        export.sparse_inference(model, x)
    assert list(model) == layers and model.training


def test_which_layers_are_left_and_why():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.tied, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
            self.other.weight = self.tied.weight
            self.hooked, self.unused, self.dense = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.hooked.register_forward_hook(lambda module, args, output: output + 1)

        def forward(self, x):
            return self.dense(self.hooked(self.other(self.tied(x))))

    model = Odd()
    prune_model(model, ["tied.weight", "hooked.weight", "unused.weight"], sparsity=0.9)
    report = export.sparse_inference(model, torch.ones(2, 8))
    said = {each.name: each.reason for each in report.layers}
    assert list(said) == ["tied", "other", "hooked", "unused", "dense"]
    for name, part in (
        ("tied", "tied"),
        ("other", "tied"),
        ("hooked", "hooks"),
        ("unused", "not called"),
        ("dense", "0%"),
    ):
        assert part in said[name]


def test_formats_that_do_not_fit_are_named():
    model = nn.Sequential(nn.Linear(64, 64))
    prune_model(model, sparsity=0.5, pattern=pattern.NofM(2, 4))
    (layer,) = export.sparse_inference(model, torch.ones(2, 64), formats=["bsr", "semi_structured"]).layers
    assert "square blocks" in layer.reason and "CUDA" in layer.reason
    (layer,) = export.sparse_inference(model.bfloat16(), torch.ones(2, 64).bfloat16(), formats=["csr"]).layers
    assert "csr" in layer.reason and "not implemented" in layer.reason


def test_a_dense_model_comes_back_unchanged():
    model, x = copy.deepcopy(BIG), torch.randn(4, 512)
    layers = list(model)
    report = export.sparse_inference(model, x)
    assert report.replaced == () and list(model) == layers and "below 50 %" in report.layers[0].reason


def test_bad_arguments_change_nothing():
    model, x = big()
    for error, arguments, more in (
        (TypeError, ("model", x), {}),
        (TypeError, (model, 3), {}),
        (ValueError, (model, torch.ones(2, 3)), {}),
        (ValueError, (model, x.to("meta")), {}),
        (ValueError, (model, x), {"formats": ["crs"]}),
        (TypeError, (model, x), {"formats": "csr"}),
        (ValueError, (model, x), {"min_gain": 0.5}),
        (TypeError, (SparseLinear(nn.Linear(2, 2)),), {}),
    ):
        call = export.sparse_inference if len(arguments) == 2 else export.to_dense
        with pytest.raises(error):
            call(*arguments, **more)
    assert [type(each) for each in model] == [nn.Linear, nn.ReLU, nn.Linear] and model.training


def test_a_real_measurement_is_never_slower_than_dense():
    model, x = big(0.97)
    expected = model(x)
    report = export.sparse_inference(model, x)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert report.replaced == () or report.sparse <= report.dense
    assert "whole model" in str(report)
