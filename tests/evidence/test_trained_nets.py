"""Saliencies on networks whose gradients are tiny, or exactly 0."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ignite_prune import prune_model, repair, saliency

DATA = [(torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def masks_of(score, scale=1.0, repairing=None):
    model = net()
    loss = lambda y, t: scale * F.cross_entropy(y, t)  # noqa: E731
    masks = prune_model(model, sparsity=0.5, saliency=score, repair=repairing, data=DATA, loss_fn=loss)
    return {name: mask.tolist() for name, mask in masks.items()}, [p.detach().clone() for p in model.parameters()]


def test_damping_of_obs_follows_the_size_of_the_gradients():
    same, weights = masks_of(saliency.OBS(block=8), repairing=repair.OBS(block=8))
    tiny, others = masks_of(saliency.OBS(block=8), 2.0**-14, repair.OBS(block=8))
    assert tiny == same
    for one, other in zip(weights, others):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    magnitude, _ = masks_of(saliency.Magnitude())
    assert same != magnitude
    assert masks_of(saliency.OBS(block=8, damping=1.0), 2.0**-14)[0] != tiny, "a number is an absolute value"


@pytest.mark.parametrize(
    "score", [saliency.Taylor(), saliency.SNIP(), saliency.OBD(), saliency.OBS()], ids=lambda s: type(s).__name__
)
def test_gradients_that_are_all_zero_are_no_evidence(score):
    model = net()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(saliency.MissingEvidence, match="the gradients of all parameters are exactly 0"):
        prune_model(model, sparsity=0.5, saliency=score, data=DATA, loss_fn=lambda y, t: (y * 0).sum())
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters()))


def test_one_layer_without_gradient_is_pruned_with_the_others():
    model = net()
    with torch.no_grad():
        model[2].weight.zero_()  # no gradient reaches the first layer
    masks = prune_model(model, sparsity=0.5, saliency=saliency.Gradient(), data=DATA, loss_fn=F.cross_entropy)
    assert masks["0.weight"].sum() + masks["2.weight"].sum() == 36
