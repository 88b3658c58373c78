"""Coupled units of sharded models: the units, the masks and the counts are those of one process."""

import warnings

import pytest
import torch

from ignite_prune import PruneHandler, allocation, pattern, saliency, structure, trace
from tests.ranks import on_ranks
from tests.sharded.nets import EVEN, Net, sharded, whole

WAYS = [(2, "fsdp"), (3, "fsdp"), (2, "kept"), (2, "tp"), (4, "both")]
CHOICES = {
    "global": {},
    "uniform": {"allocation": allocation.Uniform()},
    "sums": {"pattern": pattern.Coupled(norm=None, combine="mean", normalise="group")},
    "norm 1": {"pattern": pattern.Coupled(norm=1, round_to=2), "allocation": allocation.LAMP()},
    "parameters": {"target": structure.Parameters()},
    "squares": {"saliency": saliency.Magnitude(p=2), "params": "layers.0.weight"},
}


def choose(rank, kind):
    warnings.simplefilter("ignore")
    widths = EVEN if kind in ("tp", "both") else (12, 22, 13, 5)
    found = trace(Net(widths), torch.zeros(2, widths[0]))
    for name, options in CHOICES.items():
        model = sharded(kind, Net(widths))
        pruner, wanted = (PruneHandler(each, structure=found, **options) for each in (model, Net(widths)))
        for target in (0.3, 0.6):
            pruner.step(target)
            wanted.step(target)
            assert pruner.units == wanted.units, name
            assert pruner.sparsity == wanted.sparsity
            assert all(torch.equal(whole(pruner.masks[n]), mask) for n, mask in wanted.masks.items()), name
            assert pruner.traffic.messages <= 12
        for each, parameter in pruner.masks.parameters.items():
            assert not whole(parameter.detach())[~whole(pruner.masks[each])].any()
        other = PruneHandler(sharded(kind, Net(widths)), structure=found, masks=dict(pruner.masks), **options)
        assert other.units == wanted.units
    with pytest.raises(ValueError, match="finite norm"):
        PruneHandler(model, structure=found, pattern=pattern.Coupled(norm=float("inf")), shared=True).step(0.5)
    return True


@pytest.mark.parametrize(("ranks", "kind"), WAYS)
def test_units_are_those_of_one_process(ranks, kind):
    assert all(on_ranks(ranks, choose, kind))
