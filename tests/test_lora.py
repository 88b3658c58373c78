"""Adapters stay dense, and masks follow the base weights through wrapping and merging."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ignite_prune import MaskStore, PruneHandler, prune_model
from ignite_prune.core.selection import select


class Wrapped(nn.Module):
    """A linear layer as peft wraps it: adapters of each kind in dicts next to ``base_layer``."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, layer.out_features, bias=False)})
        self.hada_w1_a = nn.ParameterDict({"default": torch.randn(4, 4)})
        self.lora_embedding_A = nn.ParameterDict()

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

    @torch.no_grad()
    def merged(self):
        self.base_layer.weight += self.lora_B["default"].weight @ self.lora_A["default"].weight
        return self.base_layer


class Saved(nn.Module):
    """peft's ModulesToSaveWrapper."""

    def __init__(self, layer):
        super().__init__()
        self.original_module = layer
        self.modules_to_save = nn.ModuleDict({"default": nn.Linear(layer.in_features, layer.out_features)})


class Peft(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model


def base_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def test_base_weights_alone_are_selected():
    net = base_net()
    net[0], net[4] = Wrapped(net[0]), Saved(net[4])
    assert list(select(Peft(net))) == ["base_model.model.0.base_layer.weight", "base_model.model.2.weight"]
    lora = nn.Linear(4, 4)  # as of loralib, and of one's own
    lora.lora_A, lora.lora_B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))
    beside = nn.ModuleDict({"base": lora, "lora_up": nn.Linear(2, 4), "lora": nn.Sequential(nn.Linear(4, 2))})
    assert list(select(beside)) == ["base.weight"]


def test_a_layer_that_is_called_base_layer_is_no_wrapper():
    net = nn.ModuleDict({"base_layer": nn.Linear(4, 4), "head": nn.Linear(4, 2)})  # as in DLA
    assert list(select(net)) == ["base_layer.weight", "head.weight"]


def train(net, steps=3):
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.randn(16, 8)), torch.randint(0, 3, (16,))).backward()
        optimizer.step()


def test_masks_follow_adapters_on_and_off():
    net = base_net()
    before = prune_model(net, sparsity=0.5)
    net[0], net[2] = Wrapped(net[0]), Wrapped(net[2])
    peft = Peft(net)
    masks = before.for_model(peft)
    assert list(masks) == [
        "base_model.model.0.base_layer.weight", "base_model.model.2.base_layer.weight", "base_model.model.4.weight",
    ]  # fmt: skip
    assert masks.sparsity == before.sparsity == 0.5
    pruner = PruneHandler(peft, params=list(masks), masks=masks)
    train(net)
    pruner.finalize()
    net[0], net[2] = net[0].merged(), net[2].merged()
    assert int((net[2].weight == 0).sum()) < 10, "the merge fills the zeros"
    masks.apply_(net)
    for name, mask in before.items():
        weight = net.get_parameter(name)
        assert torch.equal(weight != 0, mask), name
    assert list(masks.for_model(net)) == ["0.weight", "2.weight", "4.weight"]


def test_other_names():
    net = nn.ModuleDict({"encoder": nn.Linear(4, 2)})
    masks = prune_model(net, sparsity=0.5)
    other = nn.ModuleDict({"backbone": nn.Linear(4, 2)})
    with pytest.raises(ValueError, match="Argument model has no parameter 'encoder.weight'"):
        masks.for_model(other)
    moved = masks.for_model(other, lambda name: name.replace("encoder", "backbone"))
    assert torch.equal(moved["backbone.weight"], masks["encoder.weight"]) and bool(
        (other["backbone"].weight != 0).all()
    )
    with pytest.raises(ValueError, match=r"has shape \(2, 3\), but the mask \(2, 4\)"):
        masks.for_model(nn.ModuleDict({"encoder": nn.Linear(3, 2)}))


@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config", "LoHaConfig"])
def test_with_peft(kind):
    peft = pytest.importorskip("peft")
    extra = {"feedforward_modules": []} if kind == "IA3Config" else {"r": 2}
    net = peft.get_peft_model(base_net(), getattr(peft, kind)(target_modules=["0", "2"], **extra))
    pruner = PruneHandler(net)
    assert list(pruner.masks) == [
        "base_model.model.0.base_layer.weight", "base_model.model.2.base_layer.weight", "base_model.model.4.weight",
    ]  # fmt: skip
    pruner.step(0.5)
    train(net)
    masks = pruner.masks
    merged = net.merge_and_unload()
    masks.apply_(merged)
    assert MaskStore.from_nonzero(merged).sparsity == masks.for_model(merged).sparsity == 0.5
