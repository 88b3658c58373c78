"""Two needs in one pass: the gradient of one weight does not end the backward pass that another's activations need."""

import torch
from torch import nn

from ignite_prune import PruneHandler, pattern, saliency


def test_activations_below_a_wanted_weight_have_their_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    data, loss_fn = [(torch.randn(5, 4), torch.randint(3, (5,)))], nn.functional.cross_entropy
    first = {"params": "0.weight", "saliency": saliency.ActivationTaylor(), "pattern": pattern.Channel()}
    alone = PruneHandler(model, None, [first], data=data, loss_fn=loss_fn)
    both = PruneHandler(
        model, None, [first, {"params": "2.weight", "saliency": saliency.Taylor()}], data=data, loss_fn=loss_fn
    )
    expected = []
    for pruner in (alone, both):
        pruner.step(0.0001)
        expected.append(pruner.scores()["0.weight"])
        pruner.restore()
        pruner.detach()
    assert torch.equal(*expected) and expected[0].any()
