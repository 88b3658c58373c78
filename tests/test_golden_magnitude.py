"""Magnitude masks against torch.nn.utils.prune's own."""

import math
import re

import pytest
import torch

from ignite_prune import functional, pattern, prune_model
from tests.golden_values import arrays, keys, tensor

FILE = "magnitude_torch"


def amounts():
    values, is_int = arrays(FILE)["amounts"], arrays(FILE)["amount_is_int"]
    return [int(v) if whole else float(v) for v, whole in zip(values, is_int)]


@pytest.mark.parametrize("weight", ["w2", "w4"])
@pytest.mark.parametrize("index", range(7))
def test_l1_unstructured(weight, index):
    expected = tensor(FILE, f"l1_{weight}_a{index}_mask")
    assert torch.equal(functional.mask(tensor(FILE, weight), amounts()[index]), expected)


@pytest.mark.parametrize("index", range(7))
def test_ties_are_counted_exactly(index):
    size = tensor(FILE, "wt").abs()
    mask = functional.mask(tensor(FILE, "wt"), amounts()[index])
    kth = float(arrays(FILE)[f"l1_wt_a{index}_kth_abs"])
    assert int((~mask).sum()) == int(arrays(FILE)[f"l1_wt_a{index}_npruned"])
    assert not (~mask).any() or size[~mask].max() <= kth
    assert not mask.any() or size[mask].min() >= kth


@pytest.mark.parametrize("key", keys(FILE, "ln_", "_keep"))
def test_ln_structured(key):
    weight, norm, dim, index = re.fullmatch(r"ln_(w\d)_n(1|2|inf)_dim(-?\d)_a(\d)_keep", key).groups()
    w, dim = tensor(FILE, weight), int(dim)
    mask = functional.mask(w, amounts()[int(index)], pattern=pattern.Channel(dim=dim, norm=float(norm)))
    kept = mask.movedim(dim, 0).flatten(1)
    assert torch.equal(kept.any(1), kept.all(1)), "a slice is whole or gone"
    assert torch.equal(kept.all(1), tensor(FILE, key))


@pytest.mark.parametrize("key", keys(FILE, "ln_", "_norms"))
def test_slice_norms(key):
    weight, norm, dim = re.fullmatch(r"ln_(w\d)_n(1|2|inf)_dim(-?\d)_norms", key).groups()
    units = pattern.Channel(dim=int(dim), norm=float(norm)).group(tensor(FILE, weight).abs(), None)
    torch.testing.assert_close(units, tensor(FILE, key), rtol=1e-12, atol=0)


def two_layers(*names):
    model = torch.nn.Module()
    for name in names:
        model.register_parameter(name, torch.nn.Parameter(tensor(FILE, name)))
    return model


@pytest.mark.parametrize("index", range(6))
def test_global(index):
    masks = prune_model(two_layers("w2", "w4"), "*", sparsity=amounts()[index])
    for name in ("w2", "w4"):
        assert torch.equal(masks[name], tensor(FILE, f"global_w2w4_a{index}_mask_{name}"))


@pytest.mark.parametrize("index", range(6))
def test_global_ties(index):
    masks = prune_model(two_layers("wt", "w2_tied"), "*", sparsity=amounts()[index])
    pruned = torch.cat([tensor(FILE, name).abs()[~masks[name]] for name in masks])
    assert pruned.numel() == int(arrays(FILE)[f"global_ties_a{index}_npruned"])
    assert not pruned.numel() or pruned.max() == float(arrays(FILE)[f"global_ties_a{index}_kth_abs"])


def test_repeated_fractions_of_the_rest():
    w, mask = tensor(FILE, "w4"), None
    fraction = float(arrays(FILE)["repeat_amount"])
    for round_ in range(4):
        left = w.numel() if mask is None else int(mask.sum())
        mask = functional.mask(w, w.numel() - left + round(fraction * left), mask=mask)
        assert torch.equal(mask, tensor(FILE, f"repeat_round{round_}_mask"))


def test_patterns_compose_and_never_revive():
    w, rows = tensor(FILE, "w4"), pattern.Channel(dim=0, norm=2)
    first = functional.mask(w, 2, pattern=rows)
    left = int(first.sum())
    second = functional.mask(w, w.numel() - left + round(float(arrays(FILE)["repeat_amount"]) * left), mask=first)
    # torch takes the norms of the third step over pruned entries as well; their scores are given to compare.
    third = functional.mask(w, 3, mask=second, pattern=rows, scores=w.flatten(1).norm(dim=1))
    for step, mask in enumerate((first, second, third)):
        assert torch.equal(mask, tensor(FILE, f"mixed_step{step}_mask"))


def test_scores_from_outside():
    w, scores = tensor(FILE, "w2"), tensor(FILE, "importance_w2")
    mask = functional.mask(w, float(arrays(FILE)["repeat_amount"]), scores=scores.abs())
    assert torch.equal(mask, tensor(FILE, "importance_w2_mask"))


def test_rounding_is_half_to_even():
    table = arrays(FILE)
    for row, size in enumerate(table["round_sizes"]):
        for column, amount in enumerate(table["round_amounts"]):
            mask = functional.mask(torch.arange(float(size)), float(amount))
            assert int((~mask).sum()) == table["round_torch_npruned"][row, column]
    assert math.isclose(float((~functional.mask(torch.ones(5), 0.5)).sum()), 2)
