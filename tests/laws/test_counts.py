"""Laws 1, 2, 3: counts are exact, NaN never prunes, masks nest."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ignite_prune import MaskStore, PruneHandler, functional, pattern, prune_model, saliency
from ignite_prune._utils.topk import keep_top
from ignite_prune.allocation import Global
from tests.catalogue import ALLOCATIONS, PATTERNS, REPAIRS, SALIENCIES, fits, net_for, options_for
from tests.models import WEIGHTS, assert_same_bits, batches, small_net

# Channels of a small net: a layer may well lose all of its four.
pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")


def expected_units(model, shape, sparsity, names=WEIGHTS):
    units = sum(shape.count(model.get_parameter(name).shape) for name in names)
    return units, round(units * min(sparsity / shape.share, 1))


def pruned_units(masks, shape):
    return sum(shape.count(m.shape) - int(shape.alive(m).count_nonzero()) for m in masks.values())


FITTING = [
    pytest.param(row, shape, id=f"{row}-{shape}") for row in SALIENCIES for shape in PATTERNS if fits(row, shape)
]


@pytest.mark.parametrize(("saliency_row", "pattern_row"), FITTING)
def test_every_pattern_prunes_the_exact_number_of_units(saliency_row, pattern_row):
    model, shape = small_net(), pattern_row.make()
    for sparsity in (0.0, 0.1, 0.37, 0.5):
        pruner = PruneHandler(model, **{**options_for(saliency_row, model), "pattern": shape})
        pruner.step(sparsity)
        _, pruned = expected_units(model, shape, sparsity, list(pruner.masks))
        assert pruned_units(pruner.masks, shape) == pruned
        for name, mask in pruner.masks.items():
            whole = round(mask.numel() / shape.count(mask.shape) * shape.share)
            gone = shape.count(mask.shape) - int(shape.alive(mask).count_nonzero())
            assert mask.numel() - pruner.masks.kept(name) == gone * whole == int((~mask).sum())


@pytest.mark.parametrize("pattern_row", PATTERNS, ids=str)
@pytest.mark.parametrize("row", ALLOCATIONS, ids=str)
def test_every_allocation_answers_for_every_pattern(row, pattern_row):
    model, shape = small_net(), pattern_row.make()
    sparsity = 0.6 * shape.share
    masks = prune_model(model, sparsity=sparsity, allocation=row.make(), pattern=shape)
    _, pruned = expected_units(model, shape, sparsity)
    if row.notes.get("totals"):
        assert pruned_units(masks, shape) == pruned
    else:
        assert 0 <= pruned_units(masks, shape) <= pruned + len(WEIGHTS)
    for name, p in masks.parameters.items():
        assert torch.equal(p != 0, masks[name]), "the weights are zero where pruned, and only there"


@pytest.mark.parametrize("row", SALIENCIES, ids=str)
def test_the_same_input_gives_the_same_mask(row):
    found = []
    for _ in range(2):
        model = net_for(row)
        pruner = PruneHandler(model, **options_for(row, model), generator=torch.Generator().manual_seed(5))
        pruner.step(0.63)
        found.append(dict(pruner.masks))
    assert found[0] and all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())


@pytest.mark.parametrize("row", REPAIRS, ids=str)
@pytest.mark.parametrize("saliency_row", [row for row in SALIENCIES if row.name in ("magnitude", "sparsegpt")], ids=str)
def test_a_repair_keeps_the_counts_and_revives_nothing(row, saliency_row):
    model = small_net()
    options = {"data": batches(2), "loss_fn": nn.functional.cross_entropy, "repair": row.make()}
    pruner = PruneHandler(model, saliency=saliency_row.make(model), **options)
    before = dict(pruner.masks)
    for sparsity in (0.3, 0.3, 0.71):
        pruner.step(sparsity)
        total = sum(p.numel() for p in pruner.masks.parameters.values())
        assert sum(map(pruner.masks.kept, WEIGHTS)) == total - round(sparsity * total)
        for name, p in pruner.masks.parameters.items():
            assert not (pruner.masks[name] & ~before[name]).any(), "an entry came back"
            assert not p.detach()[~pruner.masks[name]].any(), "a pruned weight is not 0"
        before = dict(pruner.masks)


@pytest.mark.filterwarnings("ignore::ignite_prune.SparsityWarning")  # the test writes all weights anew
@pytest.mark.parametrize("allocation_row", ALLOCATIONS, ids=str)
@pytest.mark.parametrize("pattern_row", PATTERNS, ids=str)
def test_masks_nest_while_the_target_rises(pattern_row, allocation_row):
    model, shape = small_net(), pattern_row.make()
    pruner = PruneHandler(model, pattern=shape, allocation=allocation_row.make())
    before = dict(pruner.masks)
    for sparsity in (0.1, 0.3, 0.31, 0.3, 0.55, 0.8, 0.0):
        pruner.step(sparsity * shape.share)
        for name, p in pruner.masks.parameters.items():
            assert not (pruner.masks[name] & ~before[name]).any(), "an entry came back"
            with torch.no_grad():
                p += torch.randn_like(p)  # what is pruned now looks large
        before = dict(pruner.masks)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pattern_row", PATTERNS, ids=str)
def test_a_score_that_is_not_finite_names_its_parameter_and_changes_nothing(pattern_row, bad):
    model = small_net()
    with torch.no_grad():
        model[5].weight[3, 7] = bad
    before = [p.detach().clone() for p in model.parameters()]
    pruner = PruneHandler(model, pattern=pattern_row.make())
    with pytest.raises(ValueError, match=r"saliency of parameter '5.weight' has 1 of 2048 values"):
        pruner.step(0.25)
    assert pruner.sparsity == 0 and pruner.param_groups[0]["sparsity"] == 0
    for a, b in zip(before, model.parameters()):
        assert_same_bits(a, b.detach())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=0, max_size=12), min_size=1, max_size=4),
    st.integers(0, 50),
    st.randoms(use_true_random=False),
)
def test_top_k_equals_sorting(values, keep, random):
    scores = [torch.tensor(v, dtype=torch.float32) for v in values]
    alive = [torch.tensor([random.random() < 0.7 for _ in v], dtype=torch.bool) for v in values]
    living = [int(a.sum()) for a in alive]
    ranked = sorted(
        ((-float(s[j]), i, j) for i, s in enumerate(scores) for j in range(len(s)) if alive[i][j]),
    )[:keep]
    expected = [torch.zeros(len(s), dtype=torch.bool) for s in scores]
    for _, i, j in ranked:
        expected[i][j] = True
    found = keep_top([lambda s=s: s for s in scores], alive, living, keep)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize(
    "make",
    [
        lambda g: torch.randn(1 << 19, generator=g),
        lambda g: torch.randint(0, 3, (1 << 19,), generator=g).float(),  # ties everywhere
        lambda g: torch.zeros(1 << 19),
        lambda g: torch.randn(1 << 19, generator=g).sort().values,
        lambda g: torch.arange(1 << 19).remainder(257).float(),  # in step with a strided sample
        lambda g: torch.where(torch.arange(1 << 19) % 3 == 0, 1e30, 1e-30) * torch.rand(1 << 19, generator=g),
        lambda g: torch.cat([torch.zeros((1 << 19) - 7), torch.ones(7)]),
    ],
)
@pytest.mark.parametrize("part", [0.0, 1e-6, 0.1, 0.5, 2 / 3, 0.97, 1.0])
def test_top_k_of_large_tensors(make, part):
    scores = make(torch.Generator().manual_seed(3))
    alive = torch.rand(scores.shape, generator=torch.Generator().manual_seed(4)) > 0.1
    pieces, masks = scores.split(200_000), alive.split(200_000)
    living = [int(m.sum()) for m in masks]
    keep = round(part * sum(living))
    found = torch.cat(keep_top([lambda p=p: p for p in pieces], masks, living, keep))
    order = torch.where(alive, scores, -torch.inf).sort(descending=True, stable=True).indices[:keep]
    expected = torch.zeros_like(alive).index_fill_(0, order, True)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_and_layout(dtype):
    model = small_net().to(dtype).to(memory_format=torch.channels_last)
    pruner = PruneHandler(model)
    pruner.step(0.7)
    total = sum(p.numel() for p in pruner.masks.parameters.values())
    assert sum(map(pruner.masks.kept, WEIGHTS)) == total - round(0.7 * total)
    assert all(m.stride() == pruner.masks.parameters[n].stride() for n, m in pruner.masks.items())
    reference = prune_model(small_net().to(dtype), sparsity=0.7)
    assert all(torch.equal(reference[name], pruner.masks[name]) for name in WEIGHTS)


def test_mixed_types_rank_by_value():
    model = nn.Module()
    model.a = nn.Parameter(torch.tensor([1.0, 1.0001, 2.0], dtype=torch.float64))
    model.b = nn.Parameter(torch.tensor([1.00005, 0.5], dtype=torch.float32))
    model.c = nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.float16))
    masks = prune_model(model, "*", sparsity=4 / 7)
    assert [masks[n].tolist() for n in "abc"] == [[False, True, True], [False, False], [False, True]]


def test_floors_hold_and_the_rest_is_the_global_ranking():
    model = small_net()
    with torch.no_grad():
        model[7].weight.mul_(1e-3)  # global magnitude would empty it
    with pytest.warns(UserWarning, match=r"less than 1 % of 7.weight \(0 of 64 kept\).*LAMP\(\), ERK\(\)"):
        pruner = PruneHandler(model)
        pruner.step(0.9)
    pruner.detach()
    floored = PruneHandler(model, allocation=Global(min_density=0.25))
    scores = {name: p.detach().abs() for name, p in floored.masks.parameters.items()}
    floored.step(0.7)
    assert floored.masks.kept("7.weight") == 16
    free = [name for name in WEIGHTS if name != "7.weight"]
    threshold = max(float(scores[n][~floored.masks[n]].max()) for n in free)
    assert all(float(scores[n][floored.masks[n]].min()) >= threshold for n in free)


def test_floors_without_room_are_refused():
    with pytest.raises(ValueError, match=r"keeps at least 241 of 2400 units, but a sparsity of 0.95 leaves 120"):
        prune_model(small_net(), sparsity=0.95, allocation=Global(min_density=0.1))


@given(st.integers(0, 60), st.lists(st.tuples(st.floats(0.1, 10), st.integers(1, 30)), min_size=1, max_size=6))
@settings(deadline=None)
def test_apportionment_adds_up_and_is_monotone(total, layers):
    from ignite_prune.allocation.erk import apportion

    weights, caps = [w * c for w, c in layers], [c for _, c in layers]
    total = min(total, sum(caps))
    counts = apportion(total, weights, caps)
    assert sum(counts) == total and all(0 <= n <= cap for n, cap in zip(counts, caps))
    if total:
        assert all(a <= b for a, b in zip(apportion(total - 1, weights, caps), counts))


def test_a_custom_mask_and_then_any_pattern_never_revives():
    for row, seed in itertools.product(PATTERNS, range(3)):
        model, shape = small_net(seed), row.make()
        start = {name: torch.rand_like(model.get_parameter(name)) > 0.3 for name in WEIGHTS}
        pruner = PruneHandler(model, pattern=shape, masks=start)
        for s in (0.2, 0.5, 0.7):
            pruner.step(s * shape.share)
            assert all(not (mask & ~start[name]).any() for name, mask in pruner.masks.items())
        if isinstance(shape, pattern.NofM):
            pruner.step(shape.share)
            for mask in pruner.masks.values():
                assert shape._groups(mask).sum(-1).max() <= shape.keep


def test_scores_by_unit():
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    given_scores = saliency.Given({"0.weight": torch.tensor([3.0, 1.0, 2.0, 4.0])})
    masks = prune_model(model, sparsity=0.5, saliency=given_scores, pattern=pattern.Channel())
    assert masks["0.weight"].all(1).tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match=r"should have its shape \(4, 3\) .*pattern=Channel\(\)\), but given \(4,\)"):
        prune_model(model, sparsity=0.25, saliency=given_scores, pattern=pattern.Unstructured())


def test_pattern_lock_starts_from_the_zeros_there_are():
    model = small_net()
    first = prune_model(model, sparsity=0.8)
    locked = MaskStore.from_nonzero(model)
    assert all(torch.equal(first[name], locked[name]) for name in WEIGHTS)
    pruner = PruneHandler(model, masks=locked)
    assert pruner.sparsity == first.sparsity
    with pytest.raises(ValueError, match="amount"):
        functional.mask(model[5].weight, 1.5)
