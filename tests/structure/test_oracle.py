"""Another library's slicing as an oracle, where it is right: the same tensors are left, number for number."""

import copy
import warnings

import pytest
import torch
from torch import nn

from ignite_prune import shrink, trace
from tests.structure.test_shrink import halved, masked
from tests.structure.zoo import MODELS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_pruning

RIGHT = ["residual", "concat", "depthwise", "squeeze-excite", "U-Net"]
OUTPUTS = {
    nn.Conv2d: torch_pruning.prune_conv_out_channels,
    nn.ConvTranspose2d: torch_pruning.prune_conv_out_channels,
    nn.Linear: torch_pruning.prune_linear_out_channels,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_left_is_what_torch_pruning_leaves(name):
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model.double().eval()
    twin = copy.deepcopy(model)
    structure = trace(model, x)
    kept = halved(structure)
    masks = structure.masks(kept)
    shrink(masked(model, masks), masks, x, structure=structure)
    graph = torch_pruning.DependencyGraph().build_dependency(twin, x)
    for group in structure:
        maker = twin.get_submodule(group.slots[group.maker].name.removesuffix(".weight"))
        gone = (~kept[group.name]).nonzero().flatten().tolist()
        graph.get_pruning_group(maker, OUTPUTS[type(maker)], idxs=gone).prune()
    left = twin.state_dict()
    assert model.state_dict().keys() == left.keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, left[key]), key
    torch.testing.assert_close(model(x), twin(x), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["resnet", "mobilenet_v2"])
def test_families_of_transformers(kind):
    from transformers import MobileNetV2Config, MobileNetV2Model, ResNetConfig, ResNetModel

    torch.manual_seed(0)
    if kind == "resnet":
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
        model = ResNetModel(config)
    else:
        model = MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.25, image_size=32))
    model.double().eval()
    x, twin = torch.randn(1, 3, 32, 32, dtype=torch.float64), copy.deepcopy(model)
    structure = trace(model, x)
    kept = halved(structure)
    masks = structure.masks(kept)
    shrink(masked(model, masks), masks, x, structure=structure)
    graph = torch_pruning.DependencyGraph().build_dependency(twin, x)
    for group in structure:
        maker = twin.get_submodule(group.name.removesuffix(".weight"))
        gone = (~kept[group.name]).nonzero().flatten().tolist()
        graph.get_pruning_group(maker, OUTPUTS[type(maker)], idxs=gone).prune()
    left = twin.state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, left[key]), key
