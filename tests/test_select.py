"""Which parameters are pruned."""

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, pattern, prune_model
from ignite_prune.core.selection import select
from tests.models import WEIGHTS, small_net


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.conv = nn.Conv1d(8, 8, 3)
        self.up = nn.ConvTranspose2d(4, 4, 3)
        self.norm = nn.LayerNorm(8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, bidirectional=True, proj_size=4)
        self.cell = nn.GRUCell(8, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.apart = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16)
        self.bilinear = nn.Bilinear(2, 3, 4)
        self.head = nn.Linear(8, 10)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(8, 8))


def test_default_takes_the_weights_of_layers_that_multiply():
    names = set(select(Everything()))
    assert {
        "conv.weight", "up.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l1_reverse", "lstm.weight_hr_l0",
        "cell.weight_hh",
        "attention.in_proj_weight", "attention.out_proj.weight", "apart.q_proj_weight", "apart.k_proj_weight",
        "apart.v_proj_weight", "encoder.self_attn.in_proj_weight", "encoder.linear1.weight", "bilinear.weight",
    } <= names  # fmt: skip
    assert not {name for name in names if "bias" in name or "norm" in name or "embed" in name}
    assert "head.weight" not in names and "scale" not in names, "the head is tied to the embedding"


def test_rules():
    model = small_net()
    assert list(select(model, "5.weight")) == ["5.weight"]
    assert list(select(model, "*.weight")) == ["0.weight", "1.weight", "5.weight", "7.weight"], "globs are literal"
    assert list(select(model, ["7.*", "0.weight"])) == ["0.weight", "7.weight", "7.bias"], "the model's order"
    assert list(select(model, nn.Conv2d)) == ["0.weight"]
    assert list(select(model, [nn.Conv2d, "7.bias"])) == ["0.weight", "7.bias"]
    assert list(select(model, exclude="5.*")) == ["0.weight", "7.weight"]
    assert list(select(model, exclude=[nn.Linear])) == ["0.weight"]
    assert list(select(Everything(), "head.weight")) == ["embed.weight"], "by any of its names"


def test_a_name_with_brackets_is_a_name():
    model = nn.ModuleDict({"a[0]": nn.Linear(2, 2), "a0": nn.Linear(2, 2)})
    assert list(select(model, "a[0].weight")) == ["a[0].weight"]


def test_wrappers():
    model = small_net()
    for wrapped in (nn.DataParallel(model), torch.compile(model), torch.compile(nn.DataParallel(model))):
        assert list(PruneHandler(wrapped).masks) == WEIGHTS

    class Mine(nn.Module):  # a user's own attribute called module is part of the names
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert list(PruneHandler(Mine()).masks) == ["module.weight"]


def test_groups():
    model = small_net()
    masks = prune_model(
        model,
        [
            {"params": nn.Conv2d, "pattern": pattern.Channel(), "sparsity": 0.25},
            {"params": "5.weight", "pattern": pattern.NofM(1, 4)},
            {"params": "7.*", "exclude": "*.bias", "sparsity": 0.0},
        ],
        sparsity=0.75,
    )
    assert {name: round(s, 3) for name, s in masks.sparsities().items()} == {
        "0.weight": 0.25, "5.weight": 0.75, "7.weight": 0.0,
    }  # fmt: skip
    pruner = PruneHandler(small_net(), params=[{"params": "0.weight", "keep_dense": True}, {"params": "5.weight"}])
    pruner.step(0.5)
    assert [group["params"] for group in pruner.param_groups] == [["0.weight"], ["5.weight"]]
    pruner.restore()


def test_the_dict_of_names():
    model = small_net()
    copy, masks = prune_model(model, {"0.weight": {"sparsity": 0.8}, "7.weight": {"sparsity": 0.5}}, inplace=False)
    assert (masks.kept("0.weight"), masks.kept("7.weight")) == (288 - 230, 32)
    assert (model[0].weight != 0).all() and int((copy[0].weight == 0).sum()) == 230


def test_empty_layers():
    model = nn.Sequential(nn.Linear(4, 3))
    model.nothing = nn.Parameter(torch.empty(0, 3))
    pruner = PruneHandler(model, params=["0.weight", "nothing"])
    pruner.step(0.5)
    assert pruner.masks.sparsities() == {"0.weight": 0.5, "nothing": 0.0}
    with pytest.raises(ValueError):
        PruneHandler(nn.Module())


@pytest.mark.parametrize(("package", "name"), [("deepspeed.runtime.engine", "DeepSpeedEngine")])
def test_engines_of_other_libraries_are_refused_by_name(package, name):
    engine = type("Own", (type(name, (nn.Module,), {"__module__": package}),), {})()
    with pytest.raises(ValueError, match="DeepSpeedEngine.*DistributedDataParallel"):
        PruneHandler(engine)


def test_horovods_optimizer_is_refused_by_name():
    model = nn.Linear(2, 2)
    kind = type("SGD", (torch.optim.SGD,), {"__module__": "horovod.torch.optimizer"})
    with pytest.raises(ValueError, match="Horovod's DistributedOptimizer"):
        PruneHandler(model, kind(model.parameters(), lr=0.1))
