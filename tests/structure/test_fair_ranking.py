"""On real architectures no group of units stays whole or is emptied while others lose half, or a warning names it."""

import copy
import functools
import logging
import statistics
import warnings

import pytest
import torch
from torch import nn

from ignite_prune import allocation, prune_model, trace

WIDTHS = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TARGETS = [0.1, 0.25, 0.5, 0.6, 0.75, 0.9]


class Mixing(nn.Module):
    """An inverted residual block with a depthwise convolution."""

    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.block = nn.Sequential(*layers, nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1))

    def forward(self, x):
        return x + self.block(x)


def depthwise():
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), Mixing(), Mixing(), nn.Conv2d(16, 24, 3, stride=2)),
        *(nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
    )


def of_transformers(name, **more):
    transformers = pytest.importorskip("transformers")
    family = name.partition("For")[0].removesuffix("Model")
    config = getattr(transformers, f"{family.removesuffix('LMHead')}Config")(**more)
    model = getattr(transformers, name)(config)
    if "Mixtral" in name:
        model.set_experts_implementation("batched_mm")
    return model


GPT = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
IMAGES = {"image_size": 8, "patch_size": 4, "intermediate_size": 64}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 16, "num_attention_heads": 8}
BERT = {"intermediate_size": 64, "max_position_embeddings": 16}
MODELS = {
    "depthwise": depthwise,
    "bert": lambda: of_transformers("BertForSequenceClassification", **WIDTHS, **BERT),
    "gpt2": lambda: of_transformers("GPT2LMHeadModel", **GPT),
    "vit": lambda: of_transformers("ViTForImageClassification", **WIDTHS, **IMAGES),
    "llama": lambda: of_transformers("LlamaForCausalLM", **WIDTHS | GROUPED),
    "mixtral": lambda: of_transformers("MixtralForCausalLM", **WIDTHS | GROUPED, num_local_experts=3),
}


@functools.cache
def traced(name, seed=0):
    """A model with its structure; the weights are as unlike from tensor to tensor as training may make them."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    images = {"depthwise": (1, 3, 12, 12), "vit": (1, 3, 8, 8)}
    inputs = torch.randn(images[name]) if name in images else torch.randint(40, (1, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            rows = torch.randn(len(parameter), *[1] * (parameter.dim() - 1))
            parameter.mul_((0.3 * torch.randn(()) + 0.3 * rows).exp())
    return model, trace(model, inputs)


def kept(name, target, how):
    model, structure = traced(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        masks = prune_model(copy.deepcopy(model), sparsity=target, structure=structure, allocation=how)
    said = " ".join(str(each.message) for each in caught if "groups of coupled units" in str(each.message))
    return {group: (each.numel(), int(each.sum())) for group, each in structure.kept(masks).items()}, said


def at_an_extreme(units):
    """Groups that lose nothing, or all but one, and at least two units less or more than the others do."""
    for name, (size, left) in units.items():
        others = [each for group, each in units.items() if group != name]
        share = size * sum(now for _, now in others) / sum(whole for whole, _ in others)  # left, if as of the others
        if (left == size and share <= size - 2) or (left == 1 and share >= 3):
            yield name


@pytest.mark.parametrize("how", [allocation.Global(), allocation.Isomorphic()], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_group_at_an_extreme_is_named(name, how):
    for target in TARGETS:
        units, said = kept(name, target, how)
        if 0.2 <= statistics.median(1 - left / size for size, left in units.values()) <= 0.8:
            for group in at_an_extreme(units):
                assert repr(group) in said, f"{group} at {target}: {units}"
        for group, (size, left) in units.items():
            assert left in (1, size) or repr(group) not in said, f"{group} is named at {target}, with {left} of {size}"


@pytest.mark.parametrize("how", [allocation.Global(), allocation.Isomorphic()], ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_pooler_loses_about_what_the_others_lose(how, scale):
    """It is the only one of its kind: its units lie in the few rows of a classifier."""
    model, structure = traced("bert")
    for target in TARGETS:
        smaller = copy.deepcopy(model)
        with torch.no_grad():
            smaller.bert.pooler.dense.weight.mul_(scale)
            smaller.classifier.weight.mul_(scale)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            masks = prune_model(smaller, sparsity=target, structure=structure, allocation=how)
        units = structure.kept(masks)["bert.pooler.dense.weight"].double()
        assert abs(1 - float(units.mean()) - target) <= 0.2
