"""prune_model and pruners with data= on sharded models: gradients of calibration passes, over all ranks."""

import warnings

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, prune_model, saliency
from tests.ranks import on_ranks
from tests.sharded.nets import EVEN, Net, sharded, whole
from tests.sharded.test_training import batches

FORMULAS = (saliency.SNIP(), saliency.Taylor(), saliency.OBD(saliency.EmpiricalFisher(per_sample=False)))


def prune(rank, kind):
    warnings.simplefilter("ignore")
    ranks = torch.distributed.get_world_size()
    apart = {"tp": 1, "both": 2}.get(kind, ranks)
    own = batches(rank // (ranks // apart), apart)
    masks = prune_model(sharded(kind, Net(EVEN)), sparsity=0.6)
    wanted = prune_model(Net(EVEN), sparsity=0.6)
    assert masks.sparsity == wanted.sparsity == 0.6
    assert all(torch.equal(whole(mask), wanted[name]) for name, mask in masks.items())
    for formula in FORMULAS:
        options = {"sparsity": 0.6, "saliency": formula, "loss_fn": nn.functional.mse_loss}
        plain, model = Net(EVEN), sharded(kind, Net(EVEN))
        pruner = PruneHandler(plain, saliency=formula, data=batches(0, 1), loss_fn=nn.functional.mse_loss)
        pruner.step(0.6)
        masks = prune_model(model, data=own, **options)
        assert masks.sparsity == 0.6
        assert all(p.grad is None for p in model.parameters())
        for name, mask in masks.items():
            assert float((whole(mask) == pruner.masks[name]).float().mean()) > 0.99, (formula, name)
            assert not whole(model.get_parameter(name).detach())[~whole(mask)].any()
    uneven = own[: 2 + (rank == 0)]
    told = r"gave rank 0 more than 2 batches, and rank 1 no more"
    if kind == "fsdp":
        with pytest.raises(ValueError, match=told):
            prune_model(sharded(kind, Net(EVEN)), data=uneven, **options)
        with pytest.raises(ValueError, match="inplace=False"):
            prune_model(sharded(kind, Net(EVEN)), sparsity=0.5, inplace=False)
    return True


@pytest.mark.parametrize(("ranks", "kind"), [(2, "fsdp"), (2, "kept"), (2, "tp"), (4, "both")])
def test_in_one_shot(ranks, kind):
    assert all(on_ranks(ranks, prune, kind))
