"""Masks of a sharded model are those of one process with the same weights, bit for bit, on any number of ranks."""

import warnings

import pytest
import torch

from ignite_prune import PruneHandler, allocation, pattern, saliency
from tests.ranks import on_ranks
from tests.sharded.nets import EVEN, Net, sharded, whole

WAYS = [(2, "fsdp"), (3, "fsdp"), (2, "kept"), (2, "mixed"), (2, "offload"), (4, "hybrid"), (2, "tp"), (4, "both")]
UNEVEN = (12, 22, 13, 5)


def own_scores(name, parameter):
    """A saliency of the user's own, with a norm over the whole parameter."""
    return parameter.abs() / parameter.norm()


def given(model):
    generator = torch.Generator().manual_seed(5)
    return saliency.Given({name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()})


def tied(model):
    return saliency.Given({name: (p * 4).round().abs() for name, p in model.named_parameters()})


def spread(model):
    """Return scores that differ between layers by orders of magnitude."""
    named = model.named_parameters()
    return saliency.Given({name: p.abs() * 10.0**-index for index, (name, p) in enumerate(named)})


CHOICES = {
    "global": lambda model: {},
    "floors": lambda model: {"allocation": allocation.Global(min_density=0.08)},
    "floors that bind": lambda model: {
        "saliency": spread(model),
        "params": "layers.*",
        "allocation": allocation.Global(min_density=0.15),
    },
    "lamp": lambda model: {"allocation": allocation.LAMP(), "params": "*"},
    "lamp of ties": lambda model: {"allocation": allocation.LAMP(), "saliency": tied(model)},
    "lamp of rows": lambda model: {"allocation": allocation.LAMP(), "pattern": pattern.Channel(0)},
    "owl": lambda model: {"allocation": allocation.OWL(threshold=2.0)},
    "deviations": lambda model: {"allocation": allocation.StdThreshold()},
    "quality": lambda model: {"allocation": allocation.StdThreshold(q=0.5)},
    "bucket": lambda model: {"allocation": allocation.Bucket(0.2, relative=True), "params": "*"},
    "budget of ties": lambda model: {"allocation": allocation.Bucket(9.0), "saliency": tied(model)},
    "uniform": lambda model: {"allocation": allocation.Uniform()},
    "erk": lambda model: {"allocation": allocation.ERK()},
    "isomorphic": lambda model: {"allocation": allocation.Isomorphic()},
    "squares": lambda model: {"saliency": saliency.Magnitude(p=2), "params": "*"},
    "random": lambda model: {"saliency": saliency.Random(), "generator": torch.Generator().manual_seed(3)},
    "given": lambda model: {"saliency": given(model)},
    "callable": lambda model: {"saliency": own_scores},
    "rows": lambda model: {"pattern": pattern.Channel(0)},
    "columns": lambda model: {"pattern": pattern.Channel(1, norm=1), "allocation": allocation.Uniform()},
    "groups": lambda model: {
        "params": [{"params": "layers.0.*", "allocation": allocation.Uniform()}, {"params": "layers.1.weight"}]
    },
    "ties": lambda model: {"saliency": tied(model)},
}
WHOLE_UNITS = {
    "2:4": lambda model: {"pattern": pattern.NofM(2, 4)},
    "1:2 of rows": lambda model: {"pattern": pattern.NofM(1, 2, dim=0), "allocation": allocation.Uniform()},
    "block": lambda model: {"pattern": pattern.Block((2, 4), reduce="max")},
}


def masks_of(make, model, targets):
    """Return the masks after each of some updates, as lists."""
    pruner = PruneHandler(model, **make(model))
    found = []
    for target in targets:
        pruner.step(target)
        found.append({name: whole(mask).tolist() for name, mask in pruner.masks.items()})
        assert pruner.sparsity == pytest.approx(1 - sum(map(pruner.masks.kept, pruner.masks)) / pruner.masks.numel)
    return found, pruner


def choose(rank, kind):
    warnings.simplefilter("ignore", UserWarning)
    widths = EVEN if kind in ("tp", "both") else UNEVEN
    told = []
    rows = CHOICES | (WHOLE_UNITS if kind in ("tp", "both") else {})
    for name, make in rows.items():
        targets = (0.2, 0.45) if name in WHOLE_UNITS else (0.3, 0.8)
        wanted, _ = masks_of(make, Net(widths), targets)
        model = sharded(kind, Net(widths))
        if "saliency" in make(Net(widths)) and name not in ("random", "callable", "squares"):
            options = make(Net(widths))
            make = lambda _, options=options: options  # noqa: E731
        found, pruner = masks_of(make, model, targets)
        assert found == wanted, (kind, name)
        exchange = pruner.masks.exchange
        assert exchange.messages <= 12, name
        assert exchange.bytes <= 1 << 20, name
        told.append((name, exchange.messages, exchange.bytes))
    return told


@pytest.mark.parametrize(("ranks", "kind"), WAYS)
def test_masks_are_those_of_one_process(ranks, kind):
    first, *others = on_ranks(ranks, choose, kind)
    assert all(other == first for other in others)
