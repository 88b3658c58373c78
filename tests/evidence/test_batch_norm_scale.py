"""Layers that no BatchNorm follows are left out of updates by BatchNormScale, with a warning."""

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, pattern, prune_model, saliency, trace


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


def scaled():
    model = net()
    nn.init.uniform_(model[1].weight, 0.1, 1)
    return model


OPTIONS = {"saliency": saliency.BatchNormScale(), "data": [(torch.randn(2, 3, 8, 8), torch.zeros(2))]}


@pytest.mark.parametrize("coupled", [False, True])
def test_layers_without_a_norm_are_left_out(coupled):
    model = scaled()
    how = {"structure": trace(model, torch.randn(1, 3, 8, 8))} if coupled else {"pattern": pattern.Channel()}
    with pytest.warns(UserWarning, match=r"3\.weight.*no BatchNorm follows it.*left out of mask updates"):
        masks = prune_model(model, sparsity=0.5, **how, **OPTIONS)
    least = model[1].weight.abs().argsort()[:4].sort().values
    assert (~masks["0.weight"].flatten(1).any(1)).nonzero().flatten().tolist() == least.tolist()
    assert bool(masks["3.weight"].flatten(1).any(1).all()), "no output of the layer without a norm is pruned"


def test_a_model_without_any_norm_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(saliency.MissingEvidence, match="no BatchNorm follows it"):
        options = {"saliency": saliency.BatchNormScale(), "data": [(torch.randn(2, 4), torch.zeros(2))]}
        prune_model(model, sparsity=0.5, pattern=pattern.Channel(), **options)


@pytest.mark.parametrize("groups, said", [(1, "no BatchNorm follows it"), (2, "does not number its outputs")])
def test_the_scale_behind_a_transposed_convolution_is_found(groups, said):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 8, 2, groups=groups), nn.BatchNorm2d(8)),
        *(nn.ReLU(), nn.Conv2d(8, 2, 1)),
    )
    nn.init.uniform_(model[1].weight, 1, 2)
    nn.init.uniform_(model[3].weight, 0.1, 0.9)
    options = {"saliency": saliency.BatchNormScale(), "data": [(torch.randn(2, 4, 4, 4), torch.zeros(2))]}
    with pytest.warns(UserWarning, match=rf"{'2' if groups > 1 else '5'}\.weight.*{said}"):
        masks = prune_model(model, sparsity=1 / 4, pattern=pattern.Channel(), **options)
    gone = ~masks["2.weight"].transpose(0, 1).flatten(1).any(1)
    least = model[3].weight.abs().argsort()[:3].sort().values.tolist() if groups == 1 else []
    assert gone.nonzero().flatten().tolist() == least
    assert masks["5.weight"].all()


def test_a_handler_names_them_once():
    model = scaled()
    pruner = PruneHandler(model, pattern=pattern.Channel(), **OPTIONS)
    with pytest.warns(UserWarning, match="no BatchNorm follows it"):
        pruner.step(0.25)
    pruner.step(0.5)
