"""Compressed files: exact to the bit, small, whole or not written, and refused if they are damaged."""

import json
import math
import os
import struct
import warnings

import pytest
import torch
from torch import nn

from ignite_prune import MaskStore, allocation, export, pattern, prune_model, shrink, trace
from tests.models import attention_net, small_net

safetensors = pytest.importorskip("safetensors")
pytest.importorskip("numpy")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
PATTERNS = {
    "unstructured": (pattern.Unstructured(), 0.9),
    "half": (pattern.Unstructured(), 0.5),
    "little": (pattern.Unstructured(), 0.05),
    "all": (pattern.Unstructured(), 0.999),
    "2:4": (pattern.NofM(2, 4), 0.5),
    "2:4 outputs": (pattern.NofM(2, 4, dim=0), 0.5),
    "1:8 of half": (pattern.NofM(1, 8), 0.4),
    "blocks": (pattern.Block((4, 8)), 0.8),
    "rows": (pattern.Channel(0), 0.5),
    "columns": (pattern.Channel(1), 0.5),
}


def bits(tensor):
    whole = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return whole.detach().contiguous().view(-1).view(torch.uint8)


def same(one, two):
    return list(one) == list(two) and all(
        one[n].dtype == two[n].dtype and one[n].shape == two[n].shape and torch.equal(bits(one[n]), bits(two[n]))
        for n in one
    )


def dense_size(model):
    return sum(each.nbytes for each in model.state_dict().values())


def pruned(shape, pattern_, sparsity, dtype=torch.float32):
    model = nn.Sequential(nn.Linear(*shape, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a layer that is nearly empty
        masks = prune_model(model, sparsity=sparsity, pattern=pattern_)
    return model.to(dtype), masks


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("given", [True, False])
def test_weights_and_masks_come_back_to_the_bit(name, given, tmp_path):
    model, masks = pruned((96, 64), *PATTERNS[name])
    path = export.save(model, tmp_path / "a", masks if given else None)
    loaded = export.load(nn.Sequential(nn.Linear(96, 64, bias=False)), path)
    assert same(loaded.state_dict(), model.state_dict())
    assert not given or torch.equal(export.read(path).masks["0.weight"], masks["0.weight"])
    assert path.stat().st_size < 1.05 * dense_size(model) + 500


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_with_all_its_values(dtype, tmp_path):
    model = nn.Sequential(nn.Linear(64, 40, dtype=dtype), nn.Linear(40, 3, dtype=dtype))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(40, 64) < 0.2)
        model[0].weight.view(-1)[:6] = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-7])
    before = {name: each.clone() for name, each in model.state_dict().items()}
    path = export.save(model, tmp_path / "a")
    fresh = nn.Sequential(nn.Linear(64, 40, dtype=dtype), nn.Linear(40, 3, dtype=dtype))
    assert same(export.load(fresh, path).state_dict(), before) and same(model.state_dict(), before)


@pytest.mark.parametrize("make", [small_net, attention_net, lambda: nn.LSTM(8, 8), lambda: nn.BatchNorm2d(3)])
def test_models_with_buffers_and_small_tensors(make, tmp_path):
    model, other = make(), make()
    for parameter in other.parameters():
        parameter.data.add_(1)
    export.save(model, tmp_path / "a")
    assert same(export.load(other, tmp_path / "a").state_dict(), model.state_dict())


def test_a_mask_keeps_a_weight_that_is_zero(tmp_path):
    model = nn.Linear(32, 32)
    kept = torch.rand(32, 32) < 0.3
    with torch.no_grad():
        model.weight.mul_(kept)
        model.weight[kept] *= torch.rand(int(kept.sum())) < 0.5  # regrown weights start at 0
    path = export.save(model, tmp_path / "a", {"weight": kept})
    assert torch.equal(export.read(path).masks["weight"], kept)


def test_sizes(tmp_path):
    def ratio(model, **more):
        return export.save(model, tmp_path / "a", overwrite=True, **more).stat().st_size / dense_size(model)

    model, masks = pruned((1024, 512), pattern.Unstructured(), 0.9)
    entropy = (0.1 * 32 - 0.1 * math.log2(0.1) - 0.9 * math.log2(0.9)) / 32
    assert entropy < ratio(model, masks=masks) < 0.117
    assert ratio(pruned((1024, 512), pattern.NofM(2, 4), 0.5)[0]) < 0.5 + 3 / 4 / 32 + 0.002
    assert ratio(pruned((1024, 512), pattern.Block((16, 16)), 0.9)[0]) < 0.102
    assert ratio(nn.Sequential(nn.Linear(1024, 512), nn.Linear(512, 512))) < 1.001


def test_tied_weights_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(100, 32), nn.Linear(32, 100, bias=False)
            self.head.weight = self.embed.weight

    model, fresh = Tied(), Tied()
    path = export.save(model, tmp_path / "a")
    assert path.stat().st_size < 1.1 * model.embed.weight.nbytes
    export.load(fresh, path)
    assert fresh.head.weight is fresh.embed.weight and same(fresh.state_dict(), model.state_dict())


def test_a_sliced_model(tmp_path):
    def build():
        return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))

    model, x = build(), torch.randn(2, 8)
    report = shrink(model, trace(model, x).masks({"0.weight": torch.arange(64) % 3 > 0}), x)
    prune_model(model, sparsity=0.5)
    other = {name: {dim: stay[:-1] for dim, stay in dims.items()} for name, dims in report.indices.items()}
    for error, wrong in ((ValueError, other), (ValueError, {"other": {}}), (TypeError, [1])):
        with pytest.raises(error, match="Argument indices"):
            export.save(model, tmp_path / "a", indices=wrong)
    path = export.save(model, tmp_path / "a", indices=report.indices)
    for target in (build, build(), export.load(build(), path)):  # a function, a full-size model, one that is sliced
        assert same(export.load(target, path).state_dict(), model.state_dict())
    with pytest.raises(ValueError):
        export.load(nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 4)), path)


def sparse_linear(tmp_path, name="a"):
    model, _ = pruned((64, 64), pattern.Unstructured(), 0.9)
    return model, export.save(model, tmp_path / name)


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path):
    model, path = sparse_linear(tmp_path)
    whole = path.read_bytes()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    for place in [*range(0, len(whole), 29), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError):
            export.load(model, path)
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError):
            export.load(model, path)
    assert same(model.state_dict(), before)


def test_a_foreign_file_and_an_unknown_version(tmp_path):
    from safetensors.torch import save_file

    model, path = sparse_linear(tmp_path)
    save_file({"0.weight": torch.ones(64, 64)}, tmp_path / "plain")
    torch.save(model.state_dict(), tmp_path / "pickle")
    (tmp_path / "text").write_text("no tensors here")
    for name in ("plain", "pickle", "text"):
        with pytest.raises(ValueError, match=name):
            export.load(model, tmp_path / name)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["version"] = "2"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(ValueError, match="version 2"):
        export.load(model, path)


def test_other_models_are_refused_and_left_alone(tmp_path):
    _, path = sparse_linear(tmp_path)
    for other, said in (
        (nn.Sequential(nn.Linear(64, 65, bias=False)), "shape"),
        (nn.Sequential(nn.Linear(64, 64)), "0.bias"),
        (nn.Linear(64, 64, bias=False), "weight"),
        (nn.Sequential(nn.Linear(64, 64, bias=False)).half(), "float16"),
        (nn.Sequential(nn.Linear(64, 64, bias=False, device="meta")), "meta"),
    ):
        before = {name: each.clone() for name, each in other.state_dict().items()}
        with pytest.raises(ValueError, match=said):
            export.load(other, path)
        assert "meta" in said or same(other.state_dict(), before)


def test_what_cannot_be_saved_leaves_no_file(tmp_path):
    model, masks = pruned((64, 64), pattern.Unstructured(), 0.5)
    (tmp_path / "exists").write_text("mine")
    other = {"0.weight": ~masks["0.weight"]}
    for error, arguments, more in (
        (FileExistsError, (model, tmp_path / "exists"), {}),
        (FileNotFoundError, (model, tmp_path / "none" / "a"), {}),
        (ValueError, (model, tmp_path / "a", other), {}),
        (ValueError, (model, tmp_path / "a", {"weight": masks["0.weight"]}), {}),
        (ValueError, (model, tmp_path / "a", {"0.weight": torch.ones(3, dtype=torch.bool)}), {}),
        (TypeError, (model, tmp_path / "a", {"0.weight": torch.ones(64, 64)}), {}),
        (TypeError, (model, tmp_path / "a", 0.5), {}),
        (TypeError, ("model", tmp_path / "a"), {}),
        (TypeError, (model, 3), {}),
        (ValueError, (nn.Linear(3, 3, device="meta"), tmp_path / "a"), {}),
    ):
        with pytest.raises(error):
            export.save(*arguments, **more)
    assert os.listdir(tmp_path) == ["exists"] and (tmp_path / "exists").read_text() == "mine"


def test_a_failing_write_leaves_no_file(tmp_path, monkeypatch):
    _, path = sparse_linear(tmp_path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        export.save(nn.Linear(3, 3), path, overwrite=True)
    assert os.listdir(tmp_path) == ["a"] and path.read_bytes() == before


def test_arguments_of_load(tmp_path):
    model, path = sparse_linear(tmp_path)
    with pytest.raises(FileNotFoundError):
        export.load(model, tmp_path / "none")
    with pytest.raises(TypeError, match="load\\(model, path\\)"):
        export.load(path, model)
    with pytest.raises(TypeError):
        export.load(lambda: 3, path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("ignite_prune._utils.extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ignite-prune\[export\]'"):
        export.save(nn.Linear(2, 2), tmp_path / "a")


def test_masks_of_a_loaded_model(tmp_path):
    model = small_net()
    masks = prune_model(model, sparsity=0.6, allocation=allocation.Uniform())
    loaded = export.load(small_net(1), export.save(model, tmp_path / "a", masks))
    assert all(torch.equal(MaskStore.from_nonzero(loaded)[name], masks[name]) for name in masks)
