"""Layers that store inputs first are pruned as the same layer with outputs first."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ignite_prune import pattern, prune_model, repair, saliency, score
from ignite_prune.handlers import SRSTE, GroupLasso

PATTERNS = (
    pattern.Channel(),
    pattern.Channel(dim=1),
    pattern.NofM(2, 4),
    pattern.NofM(1, 4),
    pattern.Channel(dim=(0, 1)),
)
SALIENCIES = (
    saliency.Magnitude(), saliency.FPGM(), saliency.Taylor(by_unit=True), saliency.ActivationTaylor(), saliency.Wanda()
)  # fmt: skip


def pair(inputs: int = 8, outputs: int = 12) -> tuple[nn.Module, nn.Module]:
    """Return a Linear and a Conv1D of the same function, each with a layer behind it."""
    torch.manual_seed(0)
    linear, turned = nn.Linear(inputs, outputs), Conv1D(outputs, inputs)
    with torch.no_grad():
        turned.weight.copy_(linear.weight.t())
        turned.bias.copy_(linear.bias)
    end = nn.Linear(outputs, 3)
    return nn.Sequential(linear, nn.ReLU(), end), nn.Sequential(turned, nn.ReLU(), end)


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 8, generator=generator), torch.randn(6, 3, generator=generator)) for _ in range(2)]


@pytest.mark.parametrize("formula", SALIENCIES, ids=str)
@pytest.mark.parametrize("pattern_", PATTERNS, ids=str)
def test_masks_are_those_of_a_linear_layer(pattern_, formula):
    by_unit = isinstance(formula, (saliency.FPGM, saliency.ActivationTaylor)) or formula == saliency.Taylor(
        by_unit=True
    )
    if by_unit and pattern_ != pattern.Channel():
        pytest.skip("one score an output")
    masks = [
        prune_model(net, ["0.weight"], sparsity=0.5, pattern=pattern_, saliency=formula, data=data(),
                    loss_fn=nn.functional.mse_loss)["0.weight"]
        for net in pair()
    ]  # fmt: skip
    assert torch.equal(masks[0], masks[1].t())
    assert 0 < masks[0].float().mean() < 1


def test_sparsegpt_repairs_along_the_inputs():
    weights = []
    for net in pair():
        prune_model(net, ["0.weight"], sparsity=0.5, pattern=pattern.NofM(2, 4), saliency=saliency.SparseGPT(),
                    repair=repair.SparseGPT(), data=data())  # fmt: skip
        weights.append(net[0].weight.detach())
    torch.testing.assert_close(weights[0], weights[1].t())


def test_unit_scores_are_of_outputs():
    assert score(nn.ConvTranspose2d(4, 6, 3), saliency=saliency.FPGM())["weight"].shape == (6,)


def test_batch_norm_behind_a_transposed_convolution():
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU())
    net[1].weight.data = torch.tensor([1.0, 0.1, 2.0, 0.2])
    images = [(torch.randn(2, 3, 4, 4), torch.zeros(2))]
    mask = prune_model(net, ["0.weight"], sparsity=0.5, pattern=pattern.Channel(), saliency=saliency.BatchNormScale(),
                       data=images)["0.weight"]  # fmt: skip
    assert mask.any(0).flatten(1).any(1).tolist() == [True, False, True, False]


def test_depthwise_transposed_convolution_keeps_whole_channels():
    mask = prune_model(nn.ConvTranspose1d(8, 8, 3, groups=8), ["weight"], sparsity=0.5, pattern=pattern.Channel())
    assert int(mask["weight"].any(-1).any(-1).sum()) == 4


def test_handlers_follow_the_layout():
    linear, turned = pair()
    for net in (linear, turned):
        handler = SRSTE(net, torch.optim.SGD(net.parameters(), 0.1), ["0.weight"])
        net.mask = handler.masks["0.weight"]
    assert torch.equal(linear.mask, turned.mask.t())
    penalties = []
    for net in pair():
        outputs = net[0].weight.data if isinstance(net[0], nn.Linear) else net[0].weight.data.t()
        outputs[:2] = 0
        lasso = GroupLasso(net, ["0.weight"], strength=0.1, pattern=pattern.Channel())
        penalties.append(float(lasso.penalty()))
    assert penalties[0] == pytest.approx(penalties[1])
