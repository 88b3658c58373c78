"""Each sparsifier under every law: counts, ties, NaN, gradients, state, evaluation, precision."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ignite_prune import functional, pattern, schedule
from ignite_prune.activation import KWinners, KWinners2d, Learnt, Lifetime, TopK
from ignite_prune.activation.row_top_k import top_of_rows
from tests.catalogue import FLAT, MAPS, SPARSIFIERS
from tests.models import assert_same_bits

rows = pytest.mark.parametrize("row", SPARSIFIERS, ids=str)
INPUTS = {
    "random": lambda shape: torch.randn(shape),
    "ties": lambda shape: torch.randint(1, 3, shape).float(),
    "all equal": lambda shape: torch.ones(shape),
    "signed ties": lambda shape: torch.randint(0, 2, shape) * 2.0 - 1,
    "huge": lambda shape: torch.randn(shape).sign() * 1e38,
}


@rows
@pytest.mark.parametrize("kind", INPUTS)
def test_counts_are_exact_whatever_ties(row, kind):
    x, layer = INPUTS[kind](row.shape), row.make()
    y = layer(x)
    assert int((y != 0).sum()) == row.wins
    assert torch.equal(y[y != 0], x[y != 0]), "winners keep their values"
    assert_same_bits(row.make()(x.clone()), y)
    assert int((layer.eval()(x) != 0).sum()) == row.wins_in_evaluation


def best(scores, k):
    """The k best places, the first among equals."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [i in order[:k] for i in range(len(scores))]


small = st.lists(st.integers(-3, 3), min_size=1, max_size=9)


@given(st.integers(1, 4), small, st.integers(0, 10), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_top_of_rows_by_hand(n, values, k, dice):
    table = [dice.sample(values, len(values)) for _ in range(n)]
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        found = top_of_rows(torch.tensor(table, dtype=dtype), k)
        assert found.tolist() == [best(row, k) for row in table]


@given(st.integers(1, 6), small, st.floats(0.01, 1.0), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_k_winners_and_lifetime_by_hand(n, values, density, dice):
    table = [dice.sample(values, len(values)) for _ in range(n)]
    x = torch.tensor(table, dtype=torch.float32)
    k = max(round((1 - (1 - density)) * len(values)), 1)
    expected = torch.tensor([best(row, k) for row in table])
    assert torch.equal(KWinners(density=density, boost=0)(x), x * expected)
    k = max(round((1 - (1 - density)) * n), 1)
    expected = torch.tensor([best(unit, k) for unit in zip(*table)]).t()
    assert torch.equal(Lifetime(density)(x), x * expected)


PATTERNS = [
    pattern.Unstructured(),
    pattern.Channel(),
    pattern.Channel(dim=1, norm=1),
    pattern.Channel(dim=(0, -1)),
    pattern.Block((2, 1, 3)),
    pattern.Block((2, 4), reduce="max"),
    pattern.NofM(1, 2, dim=0),
    pattern.NofM(2, 3, dim=-1),
    pattern.Head(2, norm=1),
]


@pytest.mark.parametrize("of", PATTERNS, ids=str)
@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_a_pattern_prunes_each_sample_as_it_prunes_a_weight(of, kind, share):
    x, amount = INPUTS[kind](MAPS), share * of.share
    kept = torch.stack([functional.mask(sample, amount, pattern=of) for sample in x])
    assert torch.equal(TopK(amount, of)(x), x * kept)


@rows
def test_nan_is_never_dropped_for_a_number(row):
    for training in (True, False):
        x, layer = torch.randn(row.shape), row.make().train(training)
        layer(x)
        x[(1,) * x.ndim] = torch.nan
        y = layer(x)
        # It wins where anything does, so that a loss shows it; and takes no other sample's place but its own.
        assert y.isnan().any() == (row.name != "top_k_all")
        wins = row.wins if training else row.wins_in_evaluation
        assert int((y != 0).sum()) == wins


@rows
def test_infinity_competes_as_the_largest(row):
    x, layer = torch.rand(row.shape), row.make()
    x[(1,) * x.ndim] = torch.inf
    x[(0,) * x.ndim] = -torch.inf
    y = layer(x)
    assert y.isinf().any() == (row.name != "top_k_all") and not y.isnan().any()
    assert int((y != 0).sum()) == row.wins


@rows
def test_gradients_go_through_winners_alone(row):
    # Winners that differ by more than gradcheck's steps.
    n = torch.Size(row.shape).numel()
    x = ((torch.randperm(n).double() + 1) / n).view(row.shape).requires_grad_()
    layer = row.make()
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, (y != 0).double())
    state = copy.deepcopy(layer)
    assert gradcheck(lambda z: copy.deepcopy(state).eval()(z), x, eps=1e-7, fast_mode=True)


@rows
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(row, dtype):
    x, layer = torch.randn(row.shape, dtype=dtype), row.make()
    y = layer(x)
    assert y.dtype == dtype and int((y != 0).sum()) == int((row.make()(x.double()) != 0).sum())
    assert layer.duty.dtype == torch.float32
    moved = layer.to(dtype)
    assert (moved.duty.dtype, moved.seen.dtype, moved.held_sparsity.dtype) == (
        torch.float32,
        torch.int64,
        torch.float64,
    )


@rows
def test_channels_last_stays(row):
    if len(row.shape) != 4:
        return
    x = torch.randint(1, 4, row.shape).float()
    y = row.make()(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last) and torch.equal(y, row.make()(x))


@rows
def test_an_empty_batch_changes_nothing(row):
    layer, x = row.make(), torch.randn(row.shape)
    layer(x)
    before = copy.deepcopy(dict(layer.state_dict()))
    for _ in range(2):
        assert layer(x[:0]).shape == x[:0].shape
        layer.eval()
    assert_same_bits(before, dict(layer.state_dict()))


@rows
def test_training_goes_on_after_inference_mode(row):
    layer, x = row.make(), torch.randn(row.shape)
    with torch.inference_mode():
        layer(x)
    layer(x)
    assert int(layer.seen) == 2 * len(x)


@rows
def test_evaluation_counts_nothing(row):
    layer = row.make()
    layer(torch.randn(row.shape))
    before = copy.deepcopy(layer.state_dict())
    layer.eval()
    for _ in range(3):
        layer(torch.randn(row.shape))
    assert_same_bits(dict(layer.state_dict()), dict(before))


@rows
def test_duty_cycles_are_shares_of_what_was_seen(row):
    layer, wins = row.make(), 0
    dim = layer.dim % len(row.shape)
    for batch in (1, 2, 3):
        y = layer(torch.rand(batch * row.shape[0], *row.shape[1:]) + 0.1)
        wins = wins + (y != 0).movedim(dim, 0).flatten(1).sum(1)
    places = 6 * torch.Size(row.shape).numel() // row.shape[dim]
    torch.testing.assert_close(layer.duty, wins / places)
    assert int(layer.seen) == 6 * row.shape[0]


@rows
def test_state_is_plain_and_comes_back(row):
    layer = row.make()
    layer(torch.randn(row.shape))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh = row.make()
    fresh.load_state_dict(state)
    same = pickle.loads(pickle.dumps(copy.deepcopy(layer))) if not row.scheduled else copy.deepcopy(layer)
    for step in range(3):
        x = torch.randn(row.shape)
        expected = layer(x)
        assert_same_bits(fresh(x), expected, str(step))
        assert_same_bits(same(x), expected, str(step))
    fresh.load_state_dict(row.make().state_dict())  # back to the beginning
    assert int(fresh.seen) == 0 and fresh.duty.numel() == 0


def test_a_unit_that_seldom_wins_is_boosted():
    x = torch.tensor([[3.0, 2.0, 1.0]]).expand(10, 3)
    layer = KWinners(1, boost=2.0, period=50)
    won = [int(layer(x)[0].argmax()) for _ in range(50)]
    assert set(won) == {0, 1, 2} and layer.entropy > 0.7 and layer.dead == 0
    plain = KWinners(1, boost=0, period=50)
    for _ in range(50):
        plain(x)
    assert plain.duty.tolist() == [1, 0, 0] and plain.entropy == 0 and plain.dead == 2
    # Then d = (1, 0, 0), a = 1/3 and b = 2: 3 e^(-4/3) = 0.79, 2 e^(2/3) = 3.9.
    assert won[:2] == [0, 1]


def test_entropy_is_that_of_the_paper():
    layer = KWinners(1)
    layer(torch.rand(4, 4))
    layer.duty.copy_(torch.tensor([0.5, 0.25, 0.25, 0.0]))
    bits = 1.0 + 2 * 0.8112781244591328  # of coins of 1/2 and 1/4
    assert layer.entropy == pytest.approx(bits / (4 * 0.8112781244591328))
    assert layer.dead == 1
    assert KWinners(1).entropy != KWinners(1).entropy, "nothing seen is no number"


def test_positive_alone():
    x = torch.tensor([[3.0, -1.0, -2.0, 0.0], [-1.0, -2.0, -3.0, -4.0]])
    layer = KWinners(2, positive=True)
    assert layer(x).tolist() == [[3, 0, 0, 0], [0, 0, 0, 0]]
    assert layer.duty.tolist() == [0.5, 0, 0, 0]


def test_a_batch_larger_than_the_period():
    layer = KWinners(1, period=3)
    for _ in range(3):
        layer(torch.eye(4).repeat(2, 1))
        assert torch.equal(layer.duty, torch.full((4,), 0.25))


def test_the_learnt_amount_has_the_slope_of_the_loss():
    torch.manual_seed(0)
    x, weight = torch.rand(400, 100, dtype=torch.float64), torch.rand(100, dtype=torch.float64)
    layer = TopK(Learnt(0.5, width=0.05)).double()
    loss = (layer(x) * weight).sum()  # linear: what is dropped is what the formula says
    loss.backward()

    def at(sparsity):
        return (TopK(sparsity)(x) * weight).sum()

    slope = (at(0.55) - at(0.45)) / 0.1
    torch.testing.assert_close(layer.learnt.logit.grad, (slope * 0.25).to(layer.learnt.logit.dtype))


@pytest.mark.parametrize("target", [0.2, 0.9])
def test_the_penalty_draws_the_amount_to_its_target(target):
    layer = TopK(Learnt(0.5, target=target, strength=5))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (0.0001 * layer(torch.rand(8, 50)).sum() + layer.learnt.penalty()).backward()
        optimizer.step()
    assert layer.sparsity == pytest.approx(target, abs=0.05)


def test_bad_arguments():
    for bad in (0, 0.0, 1.5, -0.1, float("nan")):
        for kind in (lambda d: KWinners(density=d), lambda d: KWinners2d(density=d), Lifetime):
            with pytest.raises(ValueError, match=r"\(0, 1\]|\[0, 1\]"):
                kind(bad)
    for bad in ("0.5", True, None, [0.5]):
        with pytest.raises((TypeError, ValueError), match="density"):
            KWinners(density=bad)
    with pytest.raises(ValueError, match="k or density=, one of them"):
        KWinners(3, density=0.5)
    for name, bad, error in [
        ("k", 0, ValueError), ("k", 2.0, TypeError), ("k", True, TypeError), ("boost", -1.0, ValueError),
        ("boost", float("inf"), ValueError), ("boost", "1", TypeError), ("period", 0, ValueError),
        ("period", 10.0, TypeError), ("inference", 0.5, ValueError),
    ]:  # fmt: skip
        with pytest.raises(error, match=f"Argument {name} should be"):
            KWinners(**{"k": 3, name: bad})
    for bad, error in [(1.5, ValueError), (-1, ValueError), (True, TypeError), ("a", TypeError), (None, TypeError)]:
        with pytest.raises(error, match="Argument (amount|sparsity) should be"):
            TopK(bad)
    with pytest.raises(ValueError, match="at most a sparsity of 0.5"):
        TopK(0.6, pattern.NofM(2, 4))
    with pytest.raises(ValueError, match="at most a sparsity of 0.5"):
        TopK(schedule.Linear(0.6, begin=0, end=5), pattern.NofM(2, 4))
    with pytest.raises(TypeError, match="Argument pattern"):
        TopK(0.5, "channel")
    for settings_, name in [({"initial": 0.0}, "initial"), ({"initial": 1.0}, "initial"), ({"target": 2.0}, "target"),
                            ({"strength": 0}, "strength"), ({"width": 0.7}, "width")]:  # fmt: skip
        with pytest.raises(ValueError, match=f"Argument {name} should be"):
            Learnt(**settings_)


def test_bad_tensors_change_nothing():
    layer = KWinners(5)
    for bad, error, words in [
        (torch.rand(2, 4), ValueError, "k=5 of KWinners should be at most 4"),
        (torch.rand(4), ValueError, "samples along dimension 0"),
        (torch.ones(2, 8, dtype=torch.int64), TypeError, "floating-point"),
        ("x", TypeError, "floating-point"),
    ]:
        with pytest.raises(error, match=words):
            layer(bad)
    assert int(layer.seen) == 0
    layer(torch.rand(2, 8))
    with pytest.raises(ValueError, match="has seen 8 units, but now given 9"):
        layer(torch.rand(2, 9))
    with pytest.raises(ValueError, match="at most 12 units"):
        TopK(13)(torch.rand(FLAT))
    with pytest.raises(ValueError, match="divisible by 5"):
        TopK(0.5, pattern.NofM(2, 5, dim=0))(torch.rand(FLAT))
    for shape in ((0, 12), (3, 0)):
        assert TopK(0.5)(torch.rand(shape)).shape == shape
