"""ERK and LAMP against the official programs."""

import math
import re

import pytest
import torch
from torch import nn

from ignite_prune import allocation, prune_model
from ignite_prune.allocation.lamp import lamp_scores
from tests.golden_values import arrays, keys, tensor

FILE = "allocation"


def shapes(which):
    rows, ranks = arrays(FILE)[f"{which}_shapes"], arrays(FILE)[f"{which}_ndim"]
    return [tuple(int(n) for n in row[:rank]) for row, rank in zip(rows, ranks)]


ERK = [key for key in keys(FILE, "rigl_") + keys(FILE, "jaxpruner_") if "firstdense" not in key]


@pytest.mark.parametrize("key", ERK)
def test_erk_densities(key):
    which, kind, s = re.fullmatch(r"(?:rigl|jaxpruner)_(\w+?)_(erk|er|erk_scale0\.5)_s([\d.]+)", key).groups()
    erk = allocation.ERK(power=0.5 if "scale" in kind else 1.0, kernel=kind != "er")
    sizes = shapes(which)
    counts = [math.prod(shape) for shape in sizes]
    # The programs' budget is that of whole zeros, rounded down in each layer.
    density = sum(n - math.floor(float(s) * n) for n in counts) / sum(counts)
    found = torch.tensor(erk.densities(sizes, density), dtype=torch.float64)
    torch.testing.assert_close(1 - found, tensor(FILE, key), rtol=1e-6, atol=1e-9)


def network(which):
    layers = []
    for index, text in enumerate(arrays("networks")[f"{which}.arch"]):
        layer = eval(f"nn.{text}", {"nn": nn})
        for name, parameter in layer.named_parameters():
            parameter.data = tensor("networks", f"{which}.{index}.{name}").to(parameter.dtype)
        layers.append(layer)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("which", ["mlp", "conv"])
def test_lamp_scores(which):
    model = network(which).double()
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    for index, weight in enumerate(weights):
        expected = tensor(FILE, f"lamp_{which}_score{index}")
        found = lamp_scores(tensor("networks", f"{which}.{weight_index(model, weight)}.weight").abs())
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


def weight_index(model, weight):
    return next(name.split(".")[0] for name, p in model.named_parameters() if p is weight)


@pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")
@pytest.mark.parametrize("key", keys(FILE, "lamp_mlp_s", "_mask0") + keys(FILE, "lamp_conv_s", "_mask0"))
def test_lamp_masks(key):
    which, s = re.fullmatch(r"lamp_(\w+)_s([\d.]+)_mask0", key).groups()
    masks = prune_model(network(which), sparsity=float(s), allocation=allocation.LAMP())
    for index, name in enumerate(masks):
        assert torch.equal(masks[name], tensor(FILE, f"{key[:-1]}{index}"))


def test_published_densities():
    lenet = [(300, 784), (100, 300), (10, 100)]
    for density, expected in {
        0.10: [0.07957, 0.23019, 1.0],
        0.05: [0.03848, 0.11133, 0.91851],
        0.02: [0.01539, 0.04453, 0.36740],
    }.items():
        assert allocation.ERK().densities(lenet, density) == pytest.approx(expected, abs=5e-6)
    torch.testing.assert_close(
        lamp_scores(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([1 / 14, 4 / 13, 1.0], dtype=torch.float64)
    )
