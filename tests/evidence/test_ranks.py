"""Evidence and repairs over ranks: what one process with all the data would find, on every rank."""

from unittest import mock

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, prune_model, repair, score
from ignite_prune._utils import free_memory
from ignite_prune.saliency import (
    APoZ,
    BatchNormScale,
    Change,
    HeadImportance,
    Shapley,
    SparseGPT,
    Taylor,
    Wanda,
)
from tests.ranks import on_two_ranks


def square_loss(output, y):
    return output.square().mean()


def as_lists(tensors):
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def assert_close(found, wanted):
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(values), msg=lambda text: f"{name}: {text}")


def refusal(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "none", ""


# What every rank holds alike is not added up


def changed_since_the_start(rank):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[0].weight.data.fill_(10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [torch.randn(5, 3)]
    pruner = PruneHandler(model, optimizer, "0.weight", saliency=Change(), repair=repair.BatchNorm(), data=data)
    model[0].weight.data += torch.tensor([0.0, 1.0, 2.0])
    pruner.step(1 / 3)
    return pruner.masks["0.weight"].tolist()


def test_the_value_at_the_start_is_that_of_one_rank():
    first, second = on_two_ranks(changed_since_the_start)
    assert first == second == [[False, True, True]] * 4


def scales(rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    model[1].weight.data = torch.tensor([1.0, -2.0, 0.5])
    return as_lists(score(model, saliency=BatchNormScale(), data=[torch.randn(4, 2, 3, 3)]))


def test_the_scale_that_follows_is_that_of_one_rank():
    first, second = on_two_ranks(scales)
    assert first == second == {"0.weight": [1.0, 2.0, 0.5]}


# A layer that one rank never reaches


class Branching(nn.Module):
    """With a first layer that only inputs of a positive sum go through."""

    def __init__(self, first, second):
        super().__init__()
        self.a, self.b = first, second

    def forward(self, x):
        return self.b(self.a(x) if x.sum() > 0 else x)


class Turned(nn.Module):
    """A linear layer that keeps its weight the other way round, or takes it as it is for negative inputs."""

    def __init__(self, either_way=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.either_way = either_way

    def forward(self, x):
        return nn.functional.linear(x, self.weight) if self.either_way and x.sum() < 0 else x @ self.weight


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


LINEAR, IMAGES, SEQUENCES = (5, 4), (5, 4, 6), (5, 3, 8)


def linear():
    return Branching(nn.Linear(4, 4), nn.Linear(4, 2)), LINEAR


def grouped():
    return Branching(nn.Conv1d(4, 4, 3, padding=1, groups=2), nn.Conv1d(4, 2, 1)), IMAGES


def turned():
    return Branching(Turned(), nn.Linear(4, 2)), LINEAR


def heads():
    return Branching(SelfAttention(), nn.Linear(8, 2)), SEQUENCES


def normed():
    return Branching(nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)), nn.Conv1d(4, 2, 1)), IMAGES


def made(make):
    torch.manual_seed(0)
    return make()


def half(rank, shape):
    """Data that goes through the branch on rank 0 and past it on rank 1."""
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(rank))
    return [batch.abs() * (-1 if rank else 1)]


def judged(rank, make, formula):
    model, shape = made(make)
    data = half(0, shape) + half(1, shape) if rank is None else half(rank, shape)
    params = "a.weight" if make is turned else None  # no layer that is selected by itself
    return as_lists(score(model, params, saliency=formula, data=data, loss_fn=square_loss))


@pytest.mark.parametrize(
    "make, formula",
    [
        (linear, Wanda()),
        (linear, SparseGPT()),
        (linear, APoZ()),
        (linear, Taylor()),
        (linear, Shapley()),
        (grouped, Wanda()),
        (grouped, SparseGPT()),
        (turned, Wanda()),
        (turned, SparseGPT()),
        (heads, HeadImportance()),
        (normed, BatchNormScale()),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_layer_that_one_rank_never_reaches(make, formula):
    first, second = on_two_ranks(judged, make, formula)
    assert first == second
    assert_close(first, judged(None, make, formula))
    assert any(name.startswith("a.") for name in first)


def trained(rank):
    model, shape = made(grouped)
    pruner = PruneHandler(model, None, "a.weight", saliency=Wanda())
    wholes, (seen,) = [], half(0, shape)
    for scale in ([1.0, 3.0, 1.0, 3.0], [3.0, 1.0, 3.0, 1.0]):  # after an update only what comes then counts
        if rank is None or not rank:
            model(seen * torch.tensor(scale).view(4, 1))
        else:
            model(*half(1, shape))
        pruner.step(0.25 + 0.25 * len(wholes))
        wholes.append(pruner.masks["a.weight"].tolist())
    return wholes


def test_in_training_a_rank_that_has_nothing_new_takes_the_others_evidence():
    first, second = on_two_ranks(trained)
    assert first == second == trained(None)


def stale(rank):
    """Both see the layer before the first update, rank 0 alone before the second."""
    torch.manual_seed(0)
    model = Branching(nn.Linear(4, 4, bias=False), nn.Identity())
    model.a.weight.data.fill_(1.0)
    pruner = PruneHandler(model, None, "a.weight", saliency=Wanda())
    model(torch.tensor([[1.0, 20.0, 30.0, 40.0]]))
    pruner.step(0.25)
    model(torch.tensor([[0.0, 4.0, 3.0, 2.0]]) * (-1 if rank else 1))
    pruner.step(0.5)
    return pruner.masks["a.weight"].tolist()


def test_what_an_update_has_used_is_not_counted_beside_what_is_new():
    first, second = on_two_ranks(stale)
    assert first == second == stale(None) == [[False, True, True, False]] * 4


def used_either_way(rank, formula):
    model = made(lambda: Turned(either_way=True))
    return refusal(lambda: score(model, "weight", saliency=formula, data=half(rank, LINEAR)))


@pytest.mark.parametrize("formula", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
def test_a_weight_that_ranks_use_otherwise_is_refused_on_all(formula):
    first, second = on_two_ranks(used_either_way, formula)
    assert first == second and first[0] == "ValueError" and "'weight'" in first[1] and "ranks" in first[1]


def out_of_memory(rank):
    model, shape = made(linear)
    pruner = PruneHandler(model, None, "a.weight", saliency=SparseGPT(), data=half(rank, shape))
    free = (lambda device: 0) if rank else free_memory._free_memory
    with mock.patch.object(free_memory, "_free_memory", free):  # the rank takes other work afterwards
        return refusal(lambda: pruner.step(0.5)), pruner.sparsity


def test_memory_that_one_rank_lacks_for_the_others_evidence_stops_all():
    first, second = on_two_ranks(out_of_memory)
    assert "another rank" in first[0][1] and "0 B free" in second[0][1]
    assert first[1] == second[1] == 0


# BatchNorm's statistics


class Net(nn.Module):
    """With a BatchNorm in a branch, and one that no data reaches."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.branch = Branching(nn.BatchNorm1d(4), nn.Identity())
        self.unused = nn.BatchNorm1d(2)
        self.unused.running_mean.fill_(7.0)

    def forward(self, x):
        return self.branch(self.first(x) + x.sum())


def estimated(rank, variance):
    model = made(Net)
    halves = [half(0, LINEAR) + half(0, (3, 4)) + half(0, (7, 4)), half(1, LINEAR)]
    data = halves[0] + halves[1] if rank is None else halves[rank]
    prune_model(model, sparsity=0.5, data=data, repair=repair.BatchNorm(variance))
    return as_lists({name: t.double() for name, t in model.state_dict().items()})


@pytest.mark.parametrize("variance", [False, True])
def test_statistics_are_those_of_all_batches_wherever_they_were_seen(variance):
    first, second = on_two_ranks(estimated, variance)
    assert first == second
    assert_close(first, estimated(None, variance))
    assert first["unused.running_mean"] == [7.0, 7.0]


def one_sample_too_few(rank, by_handler):
    model = made(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    data = [torch.randn(5, 3), torch.randn(1 if rank else 5, 3)]
    options = {"data": data, "repair": repair.BatchNorm()}
    before = {name: t.clone() for name, t in model.state_dict().items()}
    if by_handler:
        pruner = PruneHandler(model, **options)
        refused = refusal(lambda: pruner.step(0.5))
        assert pruner.sparsity == 0
    else:
        refused = refusal(lambda: prune_model(model, sparsity=0.5, **options))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    data.pop()
    if by_handler:
        assert pruner.step(0.5) == 0.5
    else:
        prune_model(model, sparsity=0.5, **options)
    return refused, as_lists(model.state_dict())


@pytest.mark.parametrize("by_handler", [True, False])
def test_a_batch_too_small_on_one_rank_stops_all_and_leaves_no_trace(by_handler):
    (first, model), (second, other) = on_two_ranks(one_sample_too_few, by_handler)
    assert first[0] == second[0] == "ValueError" and "batch of 1" in second[1]
    assert "repair.BatchNorm() failed on another rank" in first[1]
    assert model == other


def no_data_on_one_rank(rank):
    model = made(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    data = None if rank else [torch.randn(5, 3)]
    return refusal(lambda: prune_model(model, sparsity=0.5, data=data, repair=repair.BatchNorm()))


def test_no_data_on_one_rank_stops_all():
    first, second = on_two_ranks(no_data_on_one_rank)
    assert "another rank" in first[1] and "give data=" in second[1]
