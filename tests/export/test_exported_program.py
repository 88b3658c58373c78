"""Exported programs: the model's outputs at any batch size, its zeros, and errors that name the module."""

import pytest
import torch
from torch import nn

from ignite_prune import export, prune_model
from ignite_prune.export import SparseLinear
from tests.models import batches, small_net


def test_a_program_is_the_model(tmp_path):
    model = small_net().train()
    masks = prune_model(model, sparsity=0.8)
    program = export.to_exported_program(model, batches(1)[0][0])
    assert model.training
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    model.eval()
    for size in (2, 9):
        x = torch.randn(size, 4, 8, 8)
        assert torch.allclose(loaded.module()(x), model(x), atol=1e-6)
    for name, mask in masks.items():
        assert not loaded.state_dict[name][~mask].any()


def test_keyword_arguments_and_one_sample():
    class Scaled(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x) * scale

    model, inputs = Scaled(4, 4), {"scale": torch.randn(3, 1), "x": torch.randn(3, 4)}
    program = export.to_exported_program(model, inputs)
    more = {"scale": torch.randn(7, 1), "x": torch.randn(7, 4)}
    assert torch.allclose(program.module()(**more), model(**more), atol=1e-6)
    program = export.to_exported_program(nn.Linear(4, 4), torch.ones(1, 4), dynamic_batch=False)
    assert program.module()(torch.ones(1, 4)).shape == (1, 4)


def test_what_cannot_be_exported_is_named():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"module '1' \(Branch\), line \d+"):
        export.to_exported_program(nn.Sequential(nn.Linear(4, 4), Branch()), torch.ones(2, 4))
    sparse = nn.Sequential(SparseLinear(nn.Linear(4, 4)))
    for error, model, x in (
        (ValueError, sparse.eval(), torch.ones(2, 4)),
        (ValueError, nn.Linear(4, 4), torch.ones(2, 5)),
        (ValueError, nn.Linear(4, 4), torch.ones(2, 4, device="meta")),
        (TypeError, nn.Linear(4, 4), 3),
    ):
        with pytest.raises(error):
            export.to_exported_program(model, x)
