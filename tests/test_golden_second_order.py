"""OBS, WoodFisher and SparseGPT against the published programs and float64 formulas; the swaps of DSnoT; OWL."""

import math
import re

import pytest
import torch

from ignite_prune import PruneHandler, allocation
from ignite_prune.allocation import Layer
from ignite_prune.repair.sparsegpt_sweep import block_counts, by_count, by_group, sweep
from ignite_prune.repair.swap import swap
from ignite_prune.saliency import obs
from ignite_prune.saliency.sparsegpt import column_scores, dead_columns, inverse_factor
from tests.golden_values import arrays, keys, tensor
from tests.models import small_net

SEEDS = range(40)


def close(found, expected, rtol=1e-6, atol=1e-10):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def weight_of(layer):
    index = [key for key in keys("networks", "mlp.", ".weight") if ".grad." not in key][layer]
    return tensor("networks", index)


def quadratic(delta, matrix):
    flat = delta.flatten()
    return float(flat @ matrix @ flat) / 2


# WoodFisher: blocks of the empirical Fisher


def fisher(key):
    """The blocks, weight and damping that an array ``mb<i>_layer<i>_(split|full)_...`` belongs to."""
    batch, layer, kind = re.match(r"mb(\d+)_layer(\d+)_(split|full)_", key).groups()
    grads = tensor("woodfisher", f"grads_layer{layer}").unflatten(0, (-1, int(batch))).mean(1)
    d = grads.shape[1]
    size = int(arrays("woodfisher")["split_block_size"]) if kind == "split" else d
    blocks = torch.zeros(math.ceil(d / size), size, size, dtype=torch.float64)
    for part in grads.split(3):
        obs.add_outer_(blocks, part)
    return blocks.div_(len(grads)), weight_of(int(layer)), float(arrays("woodfisher")["damp"])


@pytest.mark.parametrize("key", keys("woodfisher", "mb", "_inv_diag"))
def test_inverse_diagonals(key):
    blocks, weight, damping = fisher(key)
    close(obs.inverse_diagonal(blocks, weight.numel(), damping), tensor("woodfisher", key))
    # However few blocks are worked on at a time.
    one_by_one = [obs.inverse_diagonal(block[None], len(block), damping) for block in blocks]
    close(torch.cat(one_by_one)[: weight.numel()], tensor("woodfisher", key))


@pytest.mark.parametrize("key", keys("woodfisher", "mb", "_obs_saliency"))
def test_obs_saliencies(key):
    blocks, weight, damping = fisher(key)
    close(obs.saliencies(weight, blocks, damping), tensor("woodfisher", key))
    close(2 * obs.saliencies(weight, blocks, damping), tensor("woodfisher", key.replace("obs_saliency", "repo_stat")))
    for dtype in (torch.float32, torch.float16):
        found = obs.saliencies(weight.to(dtype), blocks.float(), damping)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, tensor("woodfisher", key).float(), rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("key", keys("woodfisher", "mb", "_joint_update"))
def test_joint_updates(key):
    blocks, weight, damping = fisher(key)
    kept = tensor("woodfisher", key.replace("joint_update", "prune40_keep"))
    new = obs.joint_update(weight, kept, blocks, damping)
    close(new - weight, tensor("woodfisher", key))
    assert bool((new[~kept] == 0).all())
    # The published sum of single updates misses zero; put there, it costs more by the same blocks.
    matrix = torch.block_diag(*blocks)[: weight.numel(), : weight.numel()] + damping * torch.eye(weight.numel())
    singles = weight + tensor("woodfisher", key.replace("joint_update", "repo_sum_of_single_updates"))
    assert not bool((singles[~kept].abs() < 1e-6).all())
    assert quadratic(new - weight, matrix) < quadratic(singles * kept - weight, matrix)


@pytest.mark.parametrize("key", keys("woodfisher", "mb", "_single_update"))
def test_one_weight_alone(key):
    blocks, weight, damping = fisher(key)
    kept = torch.ones_like(weight, dtype=torch.bool)
    kept.view(-1)[int(arrays("woodfisher")[key.replace("update", "q")])] = False
    close(obs.joint_update(weight, kept, blocks, damping) - weight, tensor("woodfisher", key))


# OBS with a Hessian as one block


def last_layer():
    hessian = tensor("obd_obs", "last_H")
    return weight_of(2), hessian, float(arrays("obd_obs")["damping"])


def test_the_last_layer():
    weight, hessian, damping = last_layer()
    scores = obs.saliencies(weight, hessian[None], damping)
    close(scores, tensor("obd_obs", "last_obs_saliency"), rtol=1e-5)
    assert int(scores.argmin()) == int(arrays("obd_obs")["last_obs_q"])
    least = scores.flatten().sort(stable=True).indices[:8]
    assert set(least.tolist()) == set(tensor("obd_obs", "last_obs_Q").tolist())
    for gone, expected in ((least[:1], "last_obs_delta"), (least, "last_obs_joint_delta")):
        kept = torch.ones(weight.numel(), dtype=torch.bool)
        kept[gone] = False
        delta = obs.joint_update(weight, kept.view(weight.shape), hessian[None], damping) - weight
        close(delta, tensor("obd_obs", expected), rtol=1e-5)
    damped = hessian + damping * torch.eye(len(hessian))
    found = quadratic(delta, damped)
    assert found == pytest.approx(float(arrays("obd_obs")["last_obs_joint_loss_pred"]), rel=1e-5)
    singles = (weight + tensor("obd_obs", "last_obs_sum_of_single_deltas")) * kept.view(weight.shape)
    assert found < quadratic(singles - weight, damped)


def greedy(weight, matrix, count):
    """OBS one weight after another, the inverse taken anew over what is left."""
    w, left, order = weight.flatten().clone(), list(range(weight.numel())), []
    for _ in range(count):
        inverse = torch.linalg.inv(matrix[left][:, left])
        at = int((w[left].square() / inverse.diagonal()).argmin())
        w[left] -= w[left[at]] / inverse[at, at] * inverse[:, at]
        order.append(left.pop(at))
        w[order] = 0
    return w, order


def test_the_joint_solve_is_as_good_as_greedy_on_the_same_mask():
    weight, hessian, damping = last_layer()
    damped = hessian + damping * torch.eye(len(hessian))
    expected_order = tensor("obd_obs", "last_obs_greedy_order")
    found, order = greedy(weight, damped, len(expected_order))
    assert order == expected_order.tolist()
    close(found.view(weight.shape), tensor("obd_obs", "last_obs_greedy_w"), rtol=1e-5)
    kept = torch.ones(weight.numel(), dtype=torch.bool)
    kept[order] = False
    joint = obs.joint_update(weight, kept.view(weight.shape), hessian[None], damping)
    best = quadratic(joint - weight, damped)
    assert best <= quadratic(found - weight.flatten(), damped) * (1 + 1e-9)


def test_linear_regression():
    x, y, w, hessian = (tensor("obd_obs", f"lr_{name}") for name in ("X", "y", "w", "H"))
    scores = obs.saliencies(w, hessian[None], 1e-12)
    close(scores, tensor("obd_obs", "lr_saliency"), rtol=1e-7)
    close(scores, tensor("obd_obs", "lr_loss_increase"), rtol=1e-7)

    def loss(v):
        return float((x @ v - y).square().sum()) / (2 * len(y))

    for q in range(len(w)):
        kept = torch.arange(len(w)) != q
        new = obs.joint_update(w, kept, hessian[None], 1e-12)
        close(new - w, tensor("obd_obs", "lr_delta")[q], rtol=1e-7)
        refit = torch.linalg.lstsq(x[:, kept], y.unsqueeze(1)).solution.squeeze(1)
        close(new[kept], refit, rtol=1e-7)
    kept = torch.ones(len(w), dtype=torch.bool)
    kept[tensor("obd_obs", "lr_Q")] = False
    new = obs.joint_update(w, kept, hessian[None], 1e-12)
    close(new - w, tensor("obd_obs", "lr_joint_delta"), rtol=1e-7)
    assert loss(new) - loss(w) == pytest.approx(float(arrays("obd_obs")["lr_joint_loss_increase"]), rel=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_where_the_loss_is_quadratic_joint_beats_summed_singles_and_mask_alone(seed):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    x = torch.randn(60, 12, generator=generator, dtype=torch.float64) @ mix
    y = torch.randn(60, 1, generator=generator, dtype=torch.float64)
    w = torch.linalg.lstsq(x, y).solution.squeeze(1)
    hessian = x.T @ x / 60
    inverse = torch.linalg.inv(hessian)
    kept = torch.ones(12, dtype=torch.bool)
    kept[obs.saliencies(w, hessian[None], 1e-12).argsort()[:5]] = False
    singles = w - sum(w[q] / inverse[q, q] * inverse[q] for q in (~kept).nonzero().squeeze(1))
    greedily, order = greedy(w, hessian, 5)
    joint = obs.joint_update(w, kept, hessian[None], 1e-12)
    losses = {
        name: float((x @ (v * kept) - y.squeeze(1)).square().mean())
        for name, v in {"joint": joint, "singles": singles, "mask": w}.items()
    }
    assert losses["joint"] < losses["singles"] and losses["joint"] < losses["mask"]
    assert bool((joint[~kept] == 0).all()) and float(singles[~kept].abs().max()) > 1e-6
    of_greedy = torch.ones(12, dtype=torch.bool)
    of_greedy[order] = False
    same_mask = obs.joint_update(w, of_greedy, hessian[None], 1e-12)
    assert quadratic(same_mask - w, hessian) <= quadratic(greedily - w, hessian) * (1 + 1e-9)


def test_blocks_that_do_not_fit_and_damping_that_is_too_small():
    blocks, w = torch.zeros(2, 3, 3), torch.ones(5)
    with pytest.raises(ValueError, match=r"\(ceil\(5/B\), B, B\), but given \(1, 3, 3\)"):
        obs.saliencies(w, blocks[:1], 0.1)
    for damping in (0, 0.0, -1.0, math.inf, math.nan, True, "1"):
        with pytest.raises(ValueError, match="damping should be a finite number above 0"):
            obs.inverse_diagonal(blocks, 5, damping)
    with pytest.raises(ValueError, match=r"1 of 2 blocks are not positive definite with a damping of 0.5 on their"):
        obs.saliencies(w, torch.stack([-torch.eye(3), torch.eye(3)]), 0.5)
    with pytest.raises(ValueError, match="damping of 0.5"):
        obs.saliencies(w, blocks + torch.tensor(math.nan), 0.5)
    with pytest.raises(ValueError, match="damping of 0.5"):
        obs.joint_update(w, torch.arange(5) > 0, blocks + torch.tensor(math.inf), 0.5)
    with pytest.raises(TypeError, match="bool"):
        obs.joint_update(w, w, blocks, 0.5)
    with pytest.raises(ValueError, match=r"shape \(5,\), but given \(4,\)"):
        obs.joint_update(w, torch.ones(4, dtype=torch.bool), blocks, 0.5)


def test_nothing_removed_changes_nothing_and_everything_removed_leaves_zeros():
    blocks, weight, damping = fisher("mb1_layer1_split_")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        w = weight.to(dtype)
        assert torch.equal(obs.joint_update(w, torch.ones_like(w, dtype=torch.bool), blocks, damping), w)
        assert not obs.joint_update(w, torch.zeros_like(w, dtype=torch.bool), blocks, damping).any()


# SparseGPT

SPARSE = [key for key in keys("sparsegpt", end="_W") if key != "W"]


def swept(key):
    """The sweep that an array ``(official|f64)_(s<v>|<n>of<m>)_bs<b>[_exactcount]_W`` belongs to."""
    which, s, n, m, block, exact = re.fullmatch(
        r"(official|f64)_(?:s([\d.]+)|(\d+)of(\d+))_bs(\d+)(_exactcount)?_W", key
    ).groups()
    weight, hessian, block = tensor("sparsegpt", "W"), tensor("sparsegpt", "H"), int(block)
    if which == "f64":
        weight, hessian = weight.double(), hessian.double()
    rows, columns = weight.shape
    if s is None:  # n pruned of m
        choice = {"choose": by_group(int(m) - int(n)), "group": int(m)}
    else:
        sizes = [rows * min(block, columns - start) for start in range(0, columns, block)]
        choice = {"choose": by_count([int(size * float(s)) + (not exact) for size in sizes], block)}
    damping = float(arrays("sparsegpt")["percdamp"])
    return weight, hessian, {"damping": damping, "block": block}, choice


def recorded_error(weight, new, factor):
    """Half the squared errors of a sweep, had from its result: the errors e solve (w - q) = e U."""
    errors = torch.linalg.solve_triangular(factor.double(), (weight - new).double(), upper=True, left=False)
    return float(errors.square().sum()) / 2


@pytest.mark.parametrize("key", SPARSE)
def test_sparsegpt(key):
    weight, hessian, how, choice = swept(key)
    new, mask = sweep(weight, hessian, **how, **choice)
    assert torch.equal(mask, tensor("sparsegpt", f"{key[:-1]}keep"))
    assert torch.equal(new != 0, mask)
    if weight.dtype == torch.float64:
        close(new, tensor("sparsegpt", key), rtol=1e-7)
    else:
        torch.testing.assert_close(new, tensor("sparsegpt", key), rtol=0, atol=1e-5)
    if f"{key[:-1]}error" in arrays("sparsegpt"):
        factor = inverse_factor(hessian, how["damping"])
        expected = float(arrays("sparsegpt")[f"{key[:-1]}error"])
        assert recorded_error(weight, new, factor) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("key", [key for key in SPARSE if key.startswith("f64")])
@pytest.mark.parametrize("block", [1, 5, 16, 64])
def test_a_mask_that_is_given_is_kept_and_the_block_is_speed_alone(key, block):
    weight, hessian, how, _ = swept(key)
    mask = tensor("sparsegpt", f"{key[:-1]}keep")
    new, same = sweep(weight, hessian, mask=mask, **{**how, "block": block})
    assert torch.equal(mask, same)
    close(new, tensor("sparsegpt", key), rtol=1e-7)
    assert torch.equal(weight, tensor("sparsegpt", "W").double()), "the weight given is left alone"


def layer(seed, rows=12, n=24, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=generator, dtype=dtype)
    x = torch.randn(100, n, generator=generator, dtype=dtype) @ mix / n**0.5
    return torch.randn(rows, n, generator=generator, dtype=dtype), x


@pytest.mark.parametrize("seed", SEEDS)
def test_the_update_lowers_the_output_error_of_its_mask(seed):
    weight, x = layer(seed)
    hessian = 2 * x.T @ x / len(x)
    counts = block_counts(weight.numel() // 2, tuple(weight.shape), 8)
    new, mask = sweep(weight, hessian, damping=0.01, block=8, choose=by_count(counts, 8))
    error = (x @ (weight - new).T).square().sum()
    assert error < (x @ (weight - weight * mask).T).square().sum()
    assert int((~mask).sum()) == weight.numel() // 2


def test_the_factor_of_large_and_small_hessians():
    for n, dtype, tolerance in ((7, torch.float64, 1e-10), (700, torch.float64, 1e-8), (1100, torch.float32, 1e-3)):
        x = torch.randn(3 * n, n, generator=torch.Generator().manual_seed(n), dtype=dtype)
        hessian = x.T @ x
        before = hessian.clone()
        factor = inverse_factor(hessian, 0.01)
        assert torch.equal(hessian, before) and factor.dtype == dtype
        assert torch.equal(factor, factor.triu())
        damped = hessian.double() + 0.01 * hessian.diagonal().double().mean() * torch.eye(n, dtype=torch.float64)
        product = damped @ factor.double().T @ factor.double()
        assert float((product - torch.eye(n)).abs().max()) < tolerance


def test_a_factor_that_float32_cannot_have_is_had_in_float64():
    n, damping = 1030, 1e-9
    x = torch.randint(-3, 4, (50, n), generator=torch.Generator().manual_seed(0)).float()
    hessian = x.T @ x  # whole numbers, so exact, and of rank 50
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(n)
    assert int(torch.linalg.cholesky_ex(damped).info) > 0
    assert bool(torch.isfinite(inverse_factor(hessian, damping)).all())


def chain(n, above):
    """R R^T for R with 1 on the diagonal and ``above`` next to it in the last columns: every number of it is exact."""
    factor = torch.eye(n, dtype=torch.float64)
    for at, (corner, value) in enumerate(above, start=n - len(above) - 1):
        factor[at, at], factor[at, at + 1] = corner, value
    return factor


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_inverse_that_overflows_in_float32_is_computed_in_float64(overwrite):
    factor = chain(1030, [(1e18, 1.2e19), (1e18, 1.2e19), (3e-19, 0.0)])  # 1.2e19 * 1.2e19 / (1e18 * 3e-19) > 3.4e38
    hessian = (factor @ factor.T).float()
    found = inverse_factor(hessian.clone(), 0.0, overwrite)
    lower = torch.linalg.cholesky(hessian.double().flip(0, 1))
    wanted = torch.linalg.solve_triangular(lower, torch.eye(1030, dtype=torch.float64), upper=False).flip(0, 1)
    close(found, wanted.float(), rtol=1e-5)


@pytest.mark.parametrize("overwrite", [False, True])
def test_where_there_is_no_finite_inverse_the_hessian_stays_as_it_was(overwrite):
    indefinite = torch.eye(1030)
    indefinite[3, 3] = -1.0
    overflowing = chain(1030, [(1.0, 10.0)] * 45)  # its inverse has 1e45
    for hessian in (indefinite, (overflowing @ overflowing.T).float()):
        before = hessian.clone()
        with pytest.raises(ValueError, match="no finite inverse"):
            inverse_factor(hessian, 0.0, overwrite)
        assert torch.equal(hessian, before)


def test_dead_columns():
    weight, x = layer(0)
    x[:, [3, 10]] = 0
    hessian = x.T @ x
    dead = dead_columns(hessian)
    assert dead.nonzero().squeeze(1).tolist() == [3, 10]
    factor = inverse_factor(hessian, 0.01)
    filled = hessian + torch.diag(dead.double())  # 1 on the diagonal, before the mean is taken
    damped = filled + 0.01 * filled.diagonal().mean() * torch.eye(len(filled))
    close(damped @ factor.T @ factor, torch.eye(len(filled), dtype=torch.float64), atol=1e-8)
    assert not column_scores(weight, factor, dead)[:, dead].any()
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    new, _ = sweep(weight, hessian, damping=0.01, block=8, mask=kept)
    assert torch.equal(new[:, dead], (weight * kept)[:, dead]), "kept weights of a dead column stay as they are"
    counts = [3 * len(weight)] * 3
    new, mask = sweep(weight, hessian, damping=0.01, block=8, choose=by_count(counts, 8))
    assert not mask[:, dead].any() and int((~mask).sum()) == sum(counts), "they go first, and count"
    # The published program zeroes them beforehand, beyond any count.
    official, _ = sweep(weight * ~dead, hessian, damping=0.01, block=8, mask=kept)
    assert not official[:, dead].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_stays(dtype):
    weight, x = layer(2)
    expected, _ = sweep(weight, x.T @ x, damping=0.01, block=8, mask=weight > 0)
    new, mask = sweep(weight.to(dtype), (x.T @ x).float(), damping=0.01, block=8, mask=weight > 0)
    assert new.dtype == dtype and new.is_contiguous() and torch.equal(new != 0, mask)
    torch.testing.assert_close(new.double(), expected, rtol=0.02, atol=0.05)


def test_ties_go_by_position_and_what_was_pruned_goes_first():
    weight, hessian = torch.ones(2, 4), torch.eye(4)
    _, mask = sweep(weight, hessian, damping=0.0, block=4, choose=by_count([3], 4))
    assert mask.tolist() == [[True] * 4, [True, False, False, False]]
    _, mask = sweep(weight, hessian, damping=0.0, block=4, choose=by_group(2), group=4)
    assert mask.tolist() == [[True, True, False, False]] * 2
    before = torch.tensor([[False, True, True, True], [True, True, False, True]])
    _, mask = sweep(weight, hessian, damping=0.0, block=4, choose=by_count([3], 4, before))
    assert mask.tolist() == [[False, True, True, True], [True, True, False, False]]
    _, mask = sweep(weight, hessian, damping=0.0, block=1, choose=by_group(1, before), group=2)
    assert mask.tolist() == [[False, True, True, False], [True, False, False, True]]
    with pytest.raises(ValueError, match="block at column 0 can have 2 to 8 pruned, but given a count of 1"):
        sweep(weight, hessian, damping=0.0, block=4, choose=by_count([1], 4, before))


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_add_up_and_masks_nest(seed):
    generator = torch.Generator().manual_seed(seed)
    weight, x = layer(seed, rows=7, n=22)
    before = torch.rand(weight.shape, generator=generator) > 0.3
    for share in (0.2, 0.5, 0.77, 1.0):
        goal = max(round(share * weight.numel()), int((~before).sum()))
        counts = block_counts(round(share * weight.numel()), tuple(weight.shape), 8, before)
        assert sum(counts) == goal
        _, mask = sweep(weight * before, x.T @ x, damping=0.01, block=8, choose=by_count(counts, 8, before))
        assert int((~mask).sum()) == goal and not (mask & ~before).any()
        before = mask


def test_sweeps_that_are_refused():
    weight, hessian, mask = torch.ones(2, 3), torch.eye(3), torch.ones(2, 3, dtype=torch.bool)
    how = {"damping": 0.01, "block": 2}
    with pytest.raises(TypeError, match="Exactly one"):
        sweep(weight, hessian, **how)
    with pytest.raises(TypeError, match="Exactly one"):
        sweep(weight, hessian, **how, mask=mask, choose=by_group(1))
    with pytest.raises(TypeError, match="bool"):
        sweep(weight, hessian, **how, mask=weight)
    with pytest.raises(ValueError, match=r"\(2, 3\), but given \(1, 3\)"):
        sweep(weight, hessian, **how, mask=mask[:1])
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 2\)"):
        sweep(weight, hessian[:2, :2], **how, mask=mask)
    with pytest.raises(ValueError, match="block should be an int of at least 1, but given 0"):
        sweep(weight, hessian, damping=0.01, block=0, mask=mask)
    with pytest.raises(ValueError, match="damping should be a finite number of at least 0, but given -1"):
        sweep(weight, hessian, damping=-1, block=2, mask=mask)
    with pytest.raises(ValueError, match=r"no finite inverse at damping=0; try a bigger damping"):
        sweep(weight, torch.ones(3, 3), damping=0, block=2, mask=mask)
    with pytest.raises(ValueError, match="no finite inverse at damping=0.01"):
        sweep(weight, hessian * math.nan, **how, mask=mask)
    with pytest.raises(ValueError, match="not finite"):
        sweep(weight * math.inf, hessian, **how, mask=mask)


# DSnoT


def swap_trial(seed, mean, threshold=0.0, **others):
    """Wanda's mask at 60 % on inputs of non-zero means, before and after."""
    generator = torch.Generator().manual_seed(seed)
    rows, n = 32, 128
    means = mean * torch.randn(n, generator=generator, dtype=torch.float64)
    x = means + torch.randn(512, n, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, n, generator=generator, dtype=torch.float64) / n**0.5
    best = (weight.abs() * x.norm(dim=0)).topk(51, dim=1).indices
    mask = torch.zeros(rows, n, dtype=torch.bool).scatter_(1, best, True)
    new = swap(weight, mask, x.mean(0), x.var(0, unbiased=False), x.norm(dim=0), threshold=threshold, **others)
    return weight, x, mask, new


def expected_error(weight, x, mask):
    return ((weight * ~mask) @ x.mean(0)).abs()


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("seed", SEEDS)
def test_swaps_keep_each_rows_count_and_never_raise_its_expected_error(seed, threshold):
    weight, x, mask, new = swap_trial(seed, mean=1.0, threshold=threshold)
    assert torch.equal(mask.sum(1), new.sum(1))
    before, after = expected_error(weight, x, mask), expected_error(weight, x, new)
    assert bool((after <= before + 1e-12).all()) and after.mean() < before.mean()
    still = before <= threshold
    assert torch.equal(mask[still], new[still])
    one_by_one = [expected_error(weight, x, swap_trial(seed, 1.0, threshold, cycles=c)[3]) for c in range(4)]
    assert all(bool((b <= a + 1e-12).all()) for a, b in zip(one_by_one, one_by_one[1:]))
    assert torch.equal(swap_trial(seed, 1.0, threshold, cycles=0)[3], mask)


def test_swaps_lower_the_true_error_where_inputs_have_means():
    for mean, helps in ((0.3, True), (1.0, True), (3.0, True), (0.0, False)):
        errors = []
        for seed in SEEDS:
            weight, x, *masks = swap_trial(seed, mean)
            errors.append([float((x @ (weight * ~mask).T).square().mean()) for mask in masks])
        before, after = torch.tensor(errors).mean(0)
        assert (after < before) == helps, (mean, before, after)


def test_a_swap_by_hand():
    weight = torch.tensor([[3.0, 2.0, -1.0, -4.0, 1.0]])
    mask = torch.tensor([[False, False, True, True, True]])
    ones = torch.ones(5)
    # ε = 5: grows 3 (most for its variance) and prunes -1 (least Wanda of the negative): 1; the next would give -5.
    assert swap(weight, mask, ones, ones, ones).tolist() == [[True, False, False, True, True]]
    # By the Wanda score -4 goes where its input is small: 5 - 3 - 4 = -2; then nothing negative to grow is left.
    norms = torch.tensor([1.0, 1.0, 1.0, 0.1, 1.0])
    assert swap(weight, mask, ones, ones, norms).tolist() == [[True, False, True, False, True]]
    # With little variance the second input is worth more: 5 - 2 - 1 = 2, then 3 goes and -4 would overshoot.
    variance = torch.tensor([1.0, 0.1, 1.0, 1.0, 1.0])
    assert swap(weight, mask, ones, variance, ones).tolist() == [[False, True, False, True, True]]
    assert torch.equal(swap(weight, mask, ones, ones, ones, threshold=5.0), mask)
    allowed = torch.tensor([[False, True, True, True, True]])
    assert swap(weight, mask, ones, ones, ones, allowed=allowed).tolist() == [[False, True, False, True, True]]
    assert torch.equal(swap(weight, mask, ones, ones, ones, allowed=~mask & mask), mask)
    assert torch.equal(swap(-weight, mask, ones, ones, ones), swap(weight, mask, ones, ones, ones))
    assert torch.equal(swap(weight, mask, ones, 0 * ones, ones), swap(weight, mask, ones, ones, ones))


def test_swaps_that_are_refused():
    weight, mask, ones = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(3)
    with pytest.raises(TypeError, match="mask2d should be bool"):
        swap(weight, weight, ones, ones, ones)
    with pytest.raises(ValueError, match="mask2d should have one shape"):
        swap(weight, mask[:1], ones, ones, ones)
    with pytest.raises(ValueError, match=r"var_x should have the shape \(3,\), but given \(2,\)"):
        swap(weight, mask, ones, ones[:2], ones)
    with pytest.raises(ValueError, match="mean_x should be finite"):
        swap(weight, mask, ones * math.nan, ones, ones)
    with pytest.raises(ValueError, match="weight2d should be finite"):
        swap(weight * math.inf, mask, ones, ones, ones)
    with pytest.raises(ValueError, match="threshold should be at least 0"):
        swap(weight, mask, ones, ones, ones, threshold=-0.1)


# OWL


def owl_layers(outliers, sizes, alive=None):
    made = []
    for index, (count, n) in enumerate(zip(outliers, sizes)):
        scores = torch.ones(n)
        scores[:count] = 1000.0
        mask = None if alive is None else alive[index]
        made.append(
            Layer(str(index), (n,), n, lambda s=scores: s, mask, n if mask is None else int(mask.count_nonzero()))
        )
    return made


@pytest.mark.parametrize("sparsity", [0.0, 0.03, 0.3, 0.5, 0.777, 0.97, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.08, 0.5, 1.0])
def test_owl_adds_up_stays_within_its_spread_and_favours_outliers(sparsity, spread):
    outliers, sizes = [0, 3, 10, 41, 2], [100, 300, 700, 1001, 55]
    pools = allocation.OWL(spread=spread).divide(owl_layers(outliers, sizes), sparsity)
    keep = [pool.keep for pool in pools]
    assert sum(keep) == sum(sizes) - round(sum(sizes) * sparsity)
    assert all(0 <= k <= n for k, n in zip(keep, sizes))
    sparsities = [1 - k / n for k, n in zip(keep, sizes)]
    if spread <= sparsity <= 1 - spread:
        assert all(abs(s - sparsity) <= spread + 1 / n for s, n in zip(sparsities, sizes))
        furthest = max(abs(s - sparsity) for s in sparsities)
        assert furthest == pytest.approx(spread, abs=0.01), "and uses it"
    ratios = [count / n for count, n in zip(outliers, sizes)]
    for a, b in zip(*(sorted(range(5), key=lambda i: ratios[i])[k:] for k in (0, 1))):
        assert sparsities[a] >= sparsities[b] - 1 / sizes[a] - 1 / sizes[b]


def test_owl_by_hand():
    # Ratios 0.06 and 0.02, weighted mean 0.03: deviations 0.03 and -0.01, so 0.5 - 0.08 and 0.5 + 0.08/3.
    pools = allocation.OWL().divide(owl_layers([6, 6], [100, 300]), 0.5)
    assert [pool.keep for pool in pools] == [58, 142]
    assert [pool.keep for pool in allocation.OWL().divide(owl_layers([0, 0], [100, 300]), 0.5)] == [50, 150]
    # Only what is alive says anything, and the outliers of the first are gone.
    alive = [torch.arange(100) >= 6, (torch.arange(300) < 6) | (torch.arange(300) >= 150)]
    pools = allocation.OWL().divide(owl_layers([6, 6], [100, 300], alive), 0.5)
    assert [pool.keep for pool in pools] == [200 - 156, 156], "42 and 158, but 156 are alive"
    # What a layer no longer has goes to the others, so that the total stands.
    few = [None, torch.arange(300) < 20]
    few[0] = torch.ones(100, dtype=torch.bool)
    assert [pool.keep for pool in allocation.OWL().divide(owl_layers([0, 6], [100, 300], few), 0.75)] == [80, 20]


@pytest.mark.filterwarnings("ignore::ignite_prune.SparsityWarning")  # the test writes all weights anew
def test_owl_totals_stand_at_every_update_though_outliers_come_and_go():
    model = small_net()
    pruner = PruneHandler(model, allocation=allocation.OWL(threshold=2.0, spread=0.3))
    total = sum(mask.numel() for mask in pruner.masks.values())
    for sparsity in (0.1, 0.3, 0.31, 0.6, 0.65):
        pruner.step(sparsity)
        assert sum(map(pruner.masks.kept, pruner.masks)) == total - round(total * sparsity)
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn(p.shape).pow(3)


def test_owl_refuses():
    for arguments in ({"threshold": 0}, {"threshold": math.inf}, {"spread": -0.1}, {"spread": 1.1}):
        with pytest.raises(ValueError, match=r"should be (above 0 and finite|in \[0, 1\])"):
            allocation.OWL(**arguments)
    with pytest.raises(TypeError, match="spread should be a number"):
        allocation.OWL(spread="0.1")
    negative = Layer("fc.weight", (2,), 2, lambda: torch.tensor([-1.0, 1.0]), None, 2)
    with pytest.raises(ValueError, match="scores of at least 0, but some of 'fc.weight'"):
        allocation.OWL().divide([negative], 0.5)
