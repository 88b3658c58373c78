"""Training under an engine: zeros stay zero in weights, gradients and slots, and evidence is that of all data."""

import warnings

import pytest
import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from torch import nn

from ignite_prune import PruneHandler, saliency, schedule
from tests.ranks import on_ranks
from tests.sharded.nets import EVEN, Net, sharded, whole

WAYS = [(2, "fsdp"), (3, "fsdp"), (2, "kept"), (2, "offload"), (4, "hybrid"), (2, "tp"), (4, "both")]
EVIDENCE = {
    "gradient": saliency.Gradient(),
    "taylor": saliency.Taylor(),
    "snip": saliency.SNIP(anytime=True),
    "movement": saliency.Movement(),
    "fisher": saliency.OBD(saliency.EmpiricalFisher()),
    "change": saliency.Change(),
}


def batches(rank, ranks):
    """This rank's share of three batches of 12 samples."""
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(12, 12, generator=generator), torch.randn(12, 8, generator=generator)) for _ in range(3)]
    each = 12 // ranks
    return [(x[rank * each : (rank + 1) * each], y[rank * each : (rank + 1) * each]) for x, y in data]


def trained(model, data, formula, **options):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
    evaluator = create_supervised_evaluator(model)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(data))  # leaves whole parameters in a root
    pruner = PruneHandler(model, optimizer, saliency=formula, schedule=schedule.Linear(0.8, begin=0, end=4), **options)
    pruner.attach(trainer, Events.EPOCH_COMPLETED)
    trainer.run(data, max_epochs=2)
    return trainer, optimizer, pruner


def train(rank, kind):
    warnings.simplefilter("ignore", UserWarning)
    ranks = torch.distributed.get_world_size()
    apart = {"tp": 1, "both": 2}.get(kind, ranks)  # ranks with data of their own
    own = batches(rank // (ranks // apart), apart)
    for name, formula in EVIDENCE.items():
        _, _, wanted = trained(Net(EVEN), batches(0, 1), formula)
        model = sharded(kind, Net(EVEN))
        trainer, optimizer, pruner = trained(model, own, formula, keep_dense=name == "taylor")
        assert trainer.state.sparsity["global"] == pruner.sparsity == pytest.approx(wanted.sparsity)
        scores, others = pruner.scores(), wanted.scores()
        ratio = {n: whole(s).float() / others[n] for n, s in scores.items()} if name == "snip" else {}
        scale = next(iter(ratio.values())).nanmedian() if ratio else 1.0  # not normalised over shards
        for each, mask in pruner.masks.items():
            parameter, gone = dict(model.named_parameters())[each], ~whole(mask)
            torch.testing.assert_close(whole(scores[each]) / scale, others[each], rtol=1e-3, atol=1e-5)
            assert float((whole(mask) == wanted.masks[each]).float().mean()) > 0.99
            for slot in (parameter.detach(), *optimizer.state[parameter].values()):
                assert slot.shape != parameter.shape or not whole(slot)[gone].any()
        assert bool(pruner.check())
        if name == "taylor":
            pruner.restore()
            assert pruner.sparsity == 0
            assert all(bool(whole(p.detach()).any(1).all()) for n, p in model.named_parameters() if n in pruner.masks)
        pruner.detach()
    return True


@pytest.mark.parametrize(("ranks", "kind"), WAYS)
def test_zeros_and_evidence(ranks, kind):
    assert all(on_ranks(ranks, train, kind))
