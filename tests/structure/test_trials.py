"""Trials of a tracing: one copy of a model that is restored, and heads that run in training alone."""

import copy
import types

import pytest
import torch
from torch import nn

from ignite_prune import structure
from ignite_prune._utils.copies import copy_of
from ignite_prune.structure.slicing.compare import tolerance
from ignite_prune.structure.slicing.size_probe import SizeProbe
from ignite_prune.structure.slicing.trial_model import TrialModel


class Odd(nn.Module):
    """Keeps caches of all kinds on itself, in its forward pass."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1))
        self.tied, self.out = self.body[0], nn.Linear(6, 2)
        self.sizes, self.seen, self.table = [4, 6], {"calls": 0, "widths": []}, torch.zeros(2)
        self.register_buffer("count", torch.zeros(1), persistent=False)

    def forward(self, x):
        h = self.body(x)
        self.seen["calls"] += 1
        self.seen["widths"].append(h.shape[1])
        self.sizes[1], self.last = h.shape[1], h
        self.count += 1
        self.table += 1
        return self.out(h)


def fingerprint(model):
    tensors = {name: each.clone() for name, each in model.state_dict(keep_vars=True).items()}
    own = {name: copy.deepcopy(getattr(model, name, None)) for name in ("sizes", "seen", "table", "count")}
    kinds = [(name, type(each), each.training, each.extra_repr()) for name, each in model.named_modules()]
    return tensors | own, kinds


def assert_alike(one, other):
    (values, kinds), (wanted, wanted_kinds) = fingerprint(one), fingerprint(other)
    assert kinds == wanted_kinds and values.keys() == wanted.keys()
    for name, value in wanted.items():
        same = torch.equal(value, values[name]) if isinstance(value, torch.Tensor) else value == values[name]
        assert same, name


def test_a_model_is_as_it_was_after_each_trial():
    model = Odd()
    model.helper = types.SimpleNamespace(calls=[])
    trial = TrialModel(copy_of(model))
    keep = torch.arange(1, 6)
    cut = {"body.0.weight": {0: keep}, "body.0.bias": {0: keep}, "out.weight": {1: keep}}
    norm = {f"body.1.{name}": {0: keep} for name in ("weight", "bias", "running_mean", "running_var")}
    for _ in range(3):
        with trial.sliced(cut | norm) as tried, torch.no_grad():
            assert not hasattr(tried, "last")
            assert tried.train()(torch.randn(5, 4)).shape == (5, 2) and tried.out.in_features == 5
            tried.body[2].extra = "left behind"
            tried.helper.calls.append(1)
        assert_alike(tried, model)
        assert not hasattr(tried.body[2], "extra") and tried.helper.calls == model.helper.calls == []


def test_an_error_in_a_trial_is_taken_back_too():
    model = Odd()
    trial = TrialModel(copy_of(model))
    with pytest.raises(RuntimeError), trial.sliced({"out.weight": {1: torch.arange(2)}}) as tried:
        tried(torch.randn(5, 4))
    assert_alike(tried, model)


def test_copies_keep_ties_hooks_and_graph_tensors():
    model, calls = Odd(), []
    model(torch.randn(3, 4))  # self.last is a tensor of a graph
    model.out.register_forward_hook(lambda *given: calls.append(1))
    copied = copy_of(model)
    assert copied.tied is copied.body[0] and copied.body[0] is not model.body[0]
    assert copied.last.is_leaf and torch.equal(copied.last, model.last)
    copied(torch.randn(3, 4))
    assert calls == [1] and len(copied.body[2]._forward_hooks) == 0
    assert copied.body[0]._forward_hooks is not model.body[0]._forward_hooks
    assert {id(each) for each in copied.parameters()}.isdisjoint({id(each) for each in model.parameters()})


class Stages(nn.Module):
    def __init__(self, count, head):
        super().__init__()
        self.stages, self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(count)), nn.Linear(8, 2)
        self.head = head

    def forward(self, x):
        found = []
        for stage in self.stages:
            x = torch.relu(stage(x))
            found += [self.head(x)] if self.training else []
        return (self.out(x), found) if self.training else self.out(x)


@pytest.mark.parametrize(("head", "groups"), [(lambda x: x.view(-1, 8).sum(1), 0), (lambda x: x.sum(1), 6)])
def test_heads_of_training_are_found_with_few_runs(head, groups, monkeypatch):
    runs, model = [], Stages(6, head)
    forward = Stages.forward
    monkeypatch.setattr(Stages, "forward", lambda self, x: runs.append(1) or forward(self, x))
    found = structure.trace(model, torch.zeros(2, 8))
    assert len(found) == groups
    assert len(runs) <= 40  # one search over the stages, in two modes, and not a second one
    if not groups:
        assert all("writes its size" in found.frozen[f"stages.{number}.weight", 0] for number in range(6))


def test_trials_in_double_precision_are_of_small_models():
    class Single(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    x = torch.randn(2, 4)
    for model, doubled in ((nn.Linear(4, 4), True), (Single(4, 4), False), (nn.Linear(4, 1_000_000), False)):
        base, (args, _), allowed = SizeProbe(model, (x,), {})._precise
        assert (base is not model) == doubled and (args[0].dtype == torch.float64) == doubled
        assert allowed == (1e-6 if doubled else tolerance(model))
