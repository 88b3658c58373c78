"""Dynamic sparse training: exact counts, zeros, golden values, and what is refused."""

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn

from ignite_prune.handlers import SET, RigL, SparseMomentum, SRigL
from ignite_prune.regrow import (
    ByGradient,
    Connections,
    PerLayer,
    Redistribute,
    drop_smallest,
    grow_best,
)
from tests.golden_values import arrays, tensor
from tests.models import small_net

HANDLERS = [SET, RigL, SRigL, SparseMomentum]
GOLDEN = "dynamic_sparse"
CASES = sorted({key.split("_")[0] for key in arrays(GOLDEN) if key[0] == "c"})


def make(handler, model=None, optimizer=None, **options):
    model = small_net() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01) if optimizer is None else optimizer
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    options = {"sparsity": 0.8, "every": 2, "end": 1000, "generator": torch.Generator().manual_seed(3)} | options
    pruner = handler(model, optimizer, **options)
    return model, optimizer, trainer, pruner


# Golden values


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "score"), [("rigl", "g"), ("set", "u"), ("snfs", "mom")])
def test_golden_moves(case, kind, score):
    def get(key):
        return tensor(GOLDEN, f"{case}_{key}")

    fraction, k = float(arrays(GOLDEN)[f"{case}_drop_fraction"]), int(arrays(GOLDEN)[f"{case}_k"])
    survivors = drop_smallest(get("w"), get("mask"), k)
    assert torch.equal((get("mask") & ~survivors).flatten().nonzero()[:, 0], get(f"{kind}_drop_idx"))
    grown = grow_best(survivors, get(score).abs(), k)
    assert torch.equal(grown, get(f"{kind}_new_mask"))
    if kind != "set":  # what it draws is given there
        layer = Connections("w", get("w"), get("mask"), evidence=get(score))
        (moved,) = PerLayer(ByGradient())([layer], fraction, torch.Generator())
        assert torch.equal(moved.mask, grown) and torch.equal(moved.survivors, survivors)
        new = get(f"{kind}_new_w")
        begun = grown & ~survivors & ~get("mask")  # a weight just dropped and regrown keeps its value there, not here
        assert not new[begun].any()
    if f"{case}_{kind}_noregrow_new_mask" in arrays(GOLDEN):
        apart = grow_best(get("mask"), get(score).abs(), k) & (survivors | ~get("mask"))
        assert torch.equal(apart, get(f"{kind}_noregrow_new_mask"))


@pytest.mark.parametrize("case", CASES)
def test_golden_sparse_momentum(case):
    def get(key):
        return tensor(GOLDEN, f"{case}_{key}")

    layer = Connections("w", get("w"), get("mask"), evidence=get("mom"))
    (moved,) = Redistribute(fill=1)([layer], float(arrays(GOLDEN)[f"{case}_drop_fraction"]), torch.Generator())
    removed = int((get("mask") & ~moved.survivors).sum())
    assert removed == int(arrays(GOLDEN)[f"{case}_dettmers_removed"])
    assert torch.equal(moved.survivors, get("dettmers_after_prune"))
    assert torch.equal(moved.mask, get("dettmers_after_grow"))
