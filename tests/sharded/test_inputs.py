"""Wanda and SparseGPT of sharded models: inputs are summed over the ranks that have data of their own."""

import warnings

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from ignite_prune import PruneHandler, allocation, pattern, prune_model, saliency
from tests.ranks import on_ranks
from tests.sharded.nets import EVEN, Net, sharded, whole
from tests.sharded.test_training import batches

WAYS = [(2, "fsdp"), (3, "fsdp"), (2, "kept"), (2, "offload"), (4, "hybrid"), (2, "tp"), (4, "both")]
CHOICES = {
    "wanda": {"saliency": saliency.Wanda(), "allocation": allocation.Uniform()},
    "wanda, global": {"saliency": saliency.Wanda()},
    "wanda, owl": {"saliency": saliency.Wanda(), "allocation": allocation.OWL(threshold=2.0)},
    "sparsegpt": {"saliency": saliency.SparseGPT()},
}


class Convolutions(nn.Module):
    """Convolutions, one of them in groups, of odd sizes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([nn.Conv1d(3, 10, 3, padding=1), nn.Conv1d(10, 6, 3, stride=2, groups=2)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x.relu())
        return x


def same(model, plain, own, every, options, targets=(0.4, 0.7)):
    """Compare masks and scores with those of one process that has all the data."""
    pruner = PruneHandler(model, data=own, **options)
    wanted = PruneHandler(plain, data=every, **options)
    for target in targets:
        pruner.step(target)
        wanted.step(target)
        assert pruner.masks.sparsity == wanted.masks.sparsity
        scores, others = pruner.scores(), wanted.scores()
        for name, mask in wanted.masks.items():
            torch.testing.assert_close(whole(scores[name]) * mask, others[name] * mask, rtol=1e-3, atol=1e-5)
            assert torch.equal(whole(pruner.masks[name]), mask), (options, name)
    return pruner


def calibrate(rank, kind):
    warnings.simplefilter("ignore")
    ranks = torch.distributed.get_world_size()
    apart = {"tp": 1, "both": 2}.get(kind, ranks)
    own, every = batches(rank // (ranks // apart), apart), batches(0, 1)
    for options in CHOICES.values():
        pruner = same(sharded(kind, Net(EVEN)), Net(EVEN), own, every, options)
        assert pruner.traffic.messages <= 12, options
    masks = prune_model(sharded(kind, Net(EVEN)), data=own, sparsity=0.6, **CHOICES["wanda"])
    rows = whole(masks["layers.1.weight"]).sum(1)
    assert int(rows.max()) - int(rows.min()) <= 1
    if kind in ("tp", "both"):
        grouped = {"saliency": saliency.Wanda(), "pattern": pattern.NofM(2, 4)}
        same(sharded(kind, Net(EVEN)), Net(EVEN), own, every, grouped, (0.5,))
    if kind == "fsdp":
        data = [(torch.randn(2 * ranks, 3, 9, generator=torch.Generator().manual_seed(7)), None)]
        part = [(x[rank * 2 : rank * 2 + 2], None) for x, _ in data]
        for options in CHOICES.values():
            net = Convolutions()
            for layer in net.layers:
                fully_shard(layer)
            same(fully_shard(net), Convolutions(), part, data, options)
    return True


@pytest.mark.parametrize(("ranks", "kind"), WAYS)
def test_it_is_that_of_one_process_with_all_the_data(ranks, kind):
    assert all(on_ranks(ranks, calibrate, kind))
