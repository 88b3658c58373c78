"""ONNX files: the model's outputs at any batch size, its zeros, and nothing written if the export fails."""

import os

import pytest
import torch
from torch import nn

from ignite_prune import export, prune_model
from ignite_prune.export import SparseLinear

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x, y):
        return {"sum": self.last(torch.relu(self.first(x)) + y)}


class OnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


def test_outputs_zeros_and_batch_sizes(tmp_path, capfd, caplog):
    model = TwoInputs()
    masks = prune_model(model, sparsity=0.75)
    path = export.to_onnx(model, (torch.randn(2, 8), torch.randn(2, 16)), tmp_path / "a.onnx")
    assert os.listdir(tmp_path) == ["a.onnx"] and model.training
    assert capfd.readouterr() == ("", "") and not [
        one for one in caplog.records if one.levelno > 20
    ]  # the exporter logs what it does without
    held = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    for name, mask in masks.items():
        zeros = [torch.from_numpy(held[key].copy()) for key in held if name in key]
        assert zeros and torch.equal(zeros[0], model.get_parameter(name)) and not zeros[0][~mask].any()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x, y = torch.randn(7, 8), torch.randn(7, 16)
    found = session.run(None, dict(zip([each.name for each in session.get_inputs()], (x.numpy(), y.numpy()))))[0]
    assert torch.allclose(torch.from_numpy(found), model(x, y)["sum"], atol=1e-5)


def test_what_cannot_be_exported_is_named_and_leaves_no_file(tmp_path):
    (tmp_path / "exists").write_text("mine")
    for error, said, model, x, name in (
        (ValueError, "OnData", OnData(), torch.ones(2, 2), "a"),
        (ValueError, "to_dense", nn.Sequential(SparseLinear(nn.Linear(2, 2))), torch.ones(2, 2), "a"),
        (ValueError, "in 0", nn.Sequential(nn.Linear(2, 2)), torch.ones(2, 3), "a"),
        (FileExistsError, "exists", nn.Linear(2, 2), torch.ones(2, 2), "exists"),
    ):
        with pytest.raises(error, match=said):
            export.to_onnx(model, x, tmp_path / name)
    assert os.listdir(tmp_path) == ["exists"]
