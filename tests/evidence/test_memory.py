"""What evidence takes in memory: counted as it is, refused before it is allocated, and no more than it needs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ignite_prune import PruneHandler, prune_model, repair, score
from ignite_prune._utils.free_memory import check_memory
from ignite_prune.evidence import Evidence
from ignite_prune.saliency import OBD, OBS, GaussNewton, SparseGPT
from ignite_prune.saliency.needs import FisherBlocks, InputMoments


@pytest.fixture
def free(monkeypatch):
    """Set the bytes that are free."""

    def bytes_free(number):
        monkeypatch.setattr("ignite_prune._utils.free_memory._free_memory", lambda device: number)

    return bytes_free


def regression(inputs, outputs, samples=6):
    return [(torch.randn(samples, inputs), torch.randn(samples, outputs))]


MSE = F.mse_loss


# Fisher blocks


@pytest.mark.parametrize(("block", "shape"), [(6000, (1, 20, 20)), (20, (1, 20, 20)), (16, (2, 16, 16))])
def test_a_fisher_block_is_no_larger_than_its_parameter(block, shape):
    model = nn.Linear(10, 2)
    evidence = Evidence(model, {FisherBlocks(block): {"weight": model.weight}})
    evidence.calibrate(regression(10, 2), MSE)
    assert evidence.found(FisherBlocks(block), {})["weight"].sums.shape == shape


def test_large_blocks_give_what_fitting_ones_give(free):
    free(1_600)
    model, data = nn.Linear(10, 2), regression(10, 2)
    large, fitting = (
        score(model, saliency=OBS(block=block, damping=1e-3), data=data, loss_fn=MSE)["weight"] for block in (6000, 20)
    )
    assert torch.equal(large, fitting) and large.all()
    repaired = [
        prune_model(
            nn.Linear(10, 2).requires_grad_(),
            sparsity=0.5,
            saliency=lambda n, p: torch.arange(20.0).view(2, 10),
            repair=repair.OBS(block, 1e-3),
            data=data,
            loss_fn=MSE,
        ).kept("weight")
        for block in (6000, 20)
    ]
    assert repaired == [10, 10]


def test_the_padding_of_the_last_block_counts(free):
    model, formula = nn.Linear(5, 5), OBS(block=20)  # 25 weights: two blocks of 20 × 20 float32
    free(3_200)
    score(model, saliency=formula, data=regression(5, 5), loss_fn=MSE)
    free(3_199)
    with pytest.raises(ValueError, match=r"would take 3.125 KiB, but cpu has 3.124 KiB free; .*smaller blocks"):
        PruneHandler(model, saliency=formula, data=regression(5, 5), loss_fn=MSE)


# Second moments


class Turned(nn.Module):
    """``x @ w``, as GPT-2's Conv1D: the weight's inputs lie along its dim 0."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


def moments_taken(model, data):
    """Return the numbers allocated, having refused or not."""
    evidence = Evidence(model, {InputMoments(): dict(model.named_parameters())})
    (collector,) = evidence.collectors.values()
    made = []
    zeros = collector.zeros
    collector.zeros = lambda name: made.append(zeros(name)) or made[-1]
    try:
        evidence.calibrate(data)
    except ValueError as error:
        return sum(each.numel() for each in made), str(error)
    return sum(each.numel() for each in made), None


def test_turned_weights_are_counted_at_their_first_use(free):
    free(359_999)
    taken, refused = moments_taken(Turned(300, 4), regression(300, 4))
    assert taken == 0 and "would take 351.6 KiB, but cpu has 351.6 KiB free" in refused
    assert "exclude=" in refused and "block" not in refused and "('weight' has 300)" in refused
    free(360_000)
    assert moments_taken(Turned(300, 4), regression(300, 4)) == (90_000, None)


def test_turned_weights_with_few_inputs_are_not_refused(free):
    free(64)
    assert moments_taken(Turned(4, 300), regression(4, 300)) == (16, None)


def test_groups_are_counted(free):
    model = nn.Conv2d(8, 8, 3, groups=4, bias=False)
    free(4 * 18**2 * 4 - 1)
    with pytest.raises(ValueError, match=r"would take 5.062 KiB"):
        PruneHandler(model, saliency=SparseGPT())
    free(4 * 18**2 * 4)
    assert moments_taken(model, [(torch.randn(2, 8, 5, 5), None)]) == (4 * 18**2, None)


class Functional(nn.Module):
    """A grouped convolution of which no module tells."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 2, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.kernel, groups=4)


def test_groups_of_a_functional_convolution_are_counted_at_their_first_use(free):
    free(4 * 18**2 * 4 - 1)
    taken, refused = moments_taken(Functional(), [(torch.randn(2, 8, 5, 5), None)])
    assert taken == 0 and "5.062 KiB" in refused


def test_double_precision_is_counted_at_the_door(free):
    free(2_000)
    PruneHandler(nn.Linear(20, 2), saliency=SparseGPT())
    with pytest.raises(ValueError, match=r"Second moments .* would take 3.125 KiB"):
        PruneHandler(nn.Linear(20, 2).double(), saliency=SparseGPT())


def test_layers_to_come_count_at_the_first_use(free):
    model = nn.Sequential(Turned(20, 4), nn.Linear(4, 30, bias=False), nn.Linear(30, 2, bias=False))
    free((20**2 + 4**2 + 30**2) * 4 - 1)
    taken, refused = moments_taken(model, regression(20, 2))
    assert taken == 0 and refused is not None


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "0 B"), (10, "10 B"), (1023, "1023 B"), (1024, "1 KiB"), (3 << 20, "3 MiB"), (5 << 29, "2.5 GiB")],
)
def test_sizes_are_told_in_fitting_units(size, told, free):
    free(size)
    with pytest.raises(ValueError, match=rf"^All that would take 2048 TiB, but cpu has {told} free; take less$"):
        check_memory(1 << 51, torch.device("cpu"), "All that", "take less")


# Gauss-Newton


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_gauss_newton_works_on_a_few_outputs_at_a_time():
    model, samples, outputs = nn.Linear(4, 32), 64, 32
    data = [(torch.randn(samples, 4), torch.randint(outputs, (samples,)))]
    with Largest() as largest:
        score(model, saliency=OBD(GaussNewton()), data=data, loss_fn=F.cross_entropy)
    assert 0 < largest.entries <= 64 * samples * outputs


@pytest.mark.parametrize(
    "loss", [lambda o, y: MSE(o.detach(), y), lambda o, y: (y * torch.ones(1, requires_grad=True)).mean()]
)
def test_gauss_newton_refuses_a_loss_without_a_gradient(loss):
    with pytest.raises(ValueError, match=r"GaussNewton\(\) needs a loss that depends on the model's output"):
        score(nn.Linear(3, 2), saliency=OBD(GaussNewton()), data=regression(3, 2), loss_fn=loss)
