"""Calibration data as users give it: mappings, and data without an end."""

import itertools

import pytest
import torch
from torch import nn

from ignite_prune import PruneHandler, prune_model, repair, score
from ignite_prune.core import endless
from ignite_prune.saliency import APoZ, MissingEvidence, Sensitivity, Shapley, SparseGPT, Taylor, Wanda

X, Y = torch.arange(12.0).view(3, 4) / 12, torch.tensor([0, 1, 1])


class Whole(nn.Module):
    """Takes one mapping."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 2), nn.BatchNorm1d(2)

    def forward(self, batch):
        return self.norm(self.fc(batch["image"]))


class Spread(Whole):
    """Takes keywords."""

    def forward(self, image, scale=1.0):
        return self.norm(self.fc(image * scale))


class AnyKeywords(Whole):
    """Takes keywords that its signature does not name, as wrappers do."""

    def forward(self, *args, **kwargs):
        return self.norm(self.fc(kwargs["image"]))


def net(kind):
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize("formula", [Taylor(), Wanda(), Shapley(samples=2)], ids=repr)
@pytest.mark.parametrize("kind", [Whole, Spread, AnyKeywords])
def test_a_mapping_is_given_to_the_model_as_it_takes_it(kind, formula):
    wanted = score(
        net(Spread), "fc.weight", saliency=formula, data=[({"image": X}, Y)], loss_fn=nn.functional.cross_entropy
    )
    found = score(
        net(kind), "fc.weight", saliency=formula, data=[({"image": X}, Y)], loss_fn=nn.functional.cross_entropy
    )
    assert torch.equal(found["fc.weight"], wanted["fc.weight"])


@pytest.mark.parametrize("kind", [Whole, Spread])
@pytest.mark.parametrize("batch", [({"image": X}, Y), {"image": X}])
def test_repairs_of_the_whole_model_take_mappings(kind, batch):
    model = net(kind)
    prune_model(model, "fc.weight", sparsity=0.5, repair=repair.BatchNorm(), data=[batch])
    torch.testing.assert_close(model.norm.running_mean, model.fc(X).mean(0))


class Endless:
    def __iter__(self):
        while True:
            yield X, Y


@pytest.mark.parametrize("make", [lambda: itertools.cycle([(X, Y)]), lambda: itertools.repeat((X, Y))])
@pytest.mark.parametrize("further", [{}, {"repair": repair.BatchNorm()}], ids=["evidence", "passes"])
def test_endless_iterators_are_refused(make, further):
    with pytest.raises(ValueError, match=r"Argument data never ends \(itertools"):
        prune_model(net(Whole), "fc.weight", sparsity=0.5, saliency=Wanda(), data=make(), **further)


@pytest.mark.parametrize("make", [Endless, lambda: iter(Endless())])
def test_data_without_an_end_is_told(make, monkeypatch):
    monkeypatch.setattr(endless, "_MANY", 5)
    with pytest.raises(UserWarning, match="has given 5 batches in 0 s, and its length is unknown"):  # as errors here
        score(nn.Linear(4, 2), saliency=Wanda(), data=make())


def test_data_without_an_end_is_told_at_an_update(monkeypatch):
    monkeypatch.setattr(endless, "_LONG", 0.01)
    pruner = PruneHandler(nn.Linear(4, 2), saliency=Wanda(), data=Endless())
    with pytest.raises(UserWarning, match="If it never ends, this call never returns"):
        pruner.step(0.5)
    assert pruner.sparsity == 0


@pytest.mark.parametrize(
    "make", [lambda: [(X, Y)] * 9, lambda: itertools.repeat((X, Y), 9), lambda: iter([(X, Y)] * 9)]
)
def test_data_with_an_end_is_not(make, monkeypatch):
    monkeypatch.setattr(endless, "_MANY", 5)
    assert score(nn.Linear(4, 2), saliency=Wanda(), data=make())["weight"].shape == (2, 4)


# A layer that is called without rows


class Experts(nn.Module):
    """Each token goes to the first or the second expert; the third is called without any."""

    def __init__(self, make):
        super().__init__()
        self.experts, self.out = nn.ModuleList(make() for _ in range(3)), nn.Linear(4, 2)

    def forward(self, x):
        to = (x[:, 0] > 0).long()
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token = (to == number).nonzero().squeeze(1)
            y = y.index_add(0, token, expert(x[token].view(-1, 4, *expert.weight.shape[2:])).view(-1, 4))
        return self.out(y)


@pytest.mark.parametrize("formula", [Wanda(), SparseGPT(block=4), APoZ(), Sensitivity()], ids=repr)
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), lambda: nn.Conv1d(4, 4, 1)], ids=["linear", "conv"])
def test_a_call_without_rows_is_no_evidence(make, formula):
    torch.manual_seed(0)
    model, data = Experts(make), [(torch.randn(16, 4), torch.zeros(16, dtype=torch.long))]
    found = score(model, "experts.[01].weight", saliency=formula, data=data, loss_fn=nn.functional.cross_entropy)
    assert all(scores.any() for scores in found.values())
    with pytest.raises(MissingEvidence, match=r"'experts.2.weight': (its calls had no rows|the data never reached it)"):
        score(model, "experts.*.weight", saliency=formula, data=data, loss_fn=nn.functional.cross_entropy)
