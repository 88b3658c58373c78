"""The table of core operations is what the rules do, and units pass through operations that few models call."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from ignite_prune import shrink, trace
from tests.structure.test_shrink import halved


def coverage():
    spec = importlib.util.spec_from_file_location("coverage_page", Path(__file__).parents[2] / "benchmarks/coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_complete():
    script = coverage()
    page, written = script.page(), script.PAGE.read_text()
    if torch.__version__.partition("+")[0] in written:  # another version of torch may have other core operations
        assert page == written
    assert all(name in script.core_operations() for name in script.FREEZES if name.startswith("native"))


class Between(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.first, self.last, self.f = nn.Linear(6, 12), nn.Linear(12, 3), f

    def forward(self, x):
        return self.last(self.f(self.first(x)))


@pytest.mark.parametrize(
    "f",
    [
        lambda y: y.slice_scatter(y[:2] * 2, 0, 0, 2),
        lambda y: y.select_scatter(y[0] * 2, 0, 1),
        lambda y: y + torch.diagonal(y.unsqueeze(1).expand(-1, 4, -1), 0, 0, 1).t(),
        lambda y: torch.view_as_real(torch.view_as_complex(torch.stack([y, y], -1)))[..., 0],
        lambda y: y * torch.cdist(y, 2 * y)[:, :1],
        lambda y: torch.ops.aten.convolution(
            y.t()[None], torch.ones(y.shape[1], 1, 1).to(y), None, [1], [0], [1], False, [0], y.shape[1]
        )[0].t(),
        lambda y: nn.functional.pad(y.t()[None], (1, 1), "reflect")[0].t(),
        lambda y: torch.ops.aten.native_dropout(y, 0.5, False)[0],
    ],
    ids=[
        "slice_scatter",
        "select_scatter",
        "diagonal",
        "view_as_real",
        "cdist",
        "convolution",
        "reflection",
        "dropout",
    ],
)
def test_units_pass_through(f):
    torch.manual_seed(0)
    model, x = Between(f).double().eval(), torch.rand(4, 6, dtype=torch.float64)
    structure = trace(model, x)
    assert not structure.unknown
    assert shrink(model, structure.masks(halved(structure)), x, structure=structure).error < 1e-12
    assert model.first.out_features == 6
