"""What a user reads: a structure as text, and why a model cannot be traced."""

import pytest
import torch
from torch import nn

from ignite_prune import trace
from tests.structure.zoo import Residual


class Blocks(nn.Module):
    def __init__(self, depth, width=8):
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
            for _ in range(depth)
        )

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def test_a_structure_begins_with_shares_and_folds_what_is_alike():
    text = str(trace(Blocks(8), torch.randn(2, 4)))
    lines = text.splitlines()
    # 15 of a block's 16 units with 17 parameters each go: 2,040 of 2,435; and 1,920 of 2,104 multiply-adds
    go = "84 % of the parameters and 91 % of the FLOPs can go"
    assert lines[0] == f"8 groups of coupled units; {go}, if one unit of each group stays"
    assert lines[1:3] == [
        "  8 × layers.*.1.weight: 16 units",
        "      in layers.0: 1.weight[0], 3.weight[1], 1.bias[0]",
    ]
    assert lines[4].startswith(
        "  43 × layer_norm normalises over it (trace(through_norms=True) lets it shrink), as stem."
    )
    assert len(lines) == len(str(trace(Blocks(2), torch.randn(2, 4))).splitlines())


def test_kernels_are_one_line_and_the_last():
    structure = trace(Residual(), torch.randn(1, 3, 8, 8))
    lines = str(structure).splitlines()
    assert lines[-1] == "  6 × conv2d uses it as a kernel dimension, as stem.weight[2]"
    assert len(structure.frozen) == 9
    assert "stem.weight[0]" in str(structure.groups["stem.weight"])


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        if y.sum() > 0:
            return y
        return -y


class Values(nn.Module):
    def forward(self, x):
        return _through_numpy(x)


def _through_numpy(x):
    return torch.from_numpy(x.detach().numpy() + 1)


@pytest.mark.parametrize(("kind", "line"), [(Router, "if y.sum() > 0:"), (Values, "return torch.from_numpy(")])
def test_what_cannot_be_traced_names_the_module_and_the_users_line(kind, line, capfd):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(kind()))
    with pytest.raises(ValueError, match=r"structure\.declare") as raised:
        trace(model, torch.randn(2, 4))
    text = str(raised.value)
    assert f"in '1.0' ({kind.__name__}), test_description.py line" in text
    assert line in text and "\n" not in text and len(text) < 700
    assert capfd.readouterr() == ("", "")
