"""Engines: each runs the same model, in turns, and those that cannot say why."""

import copy

import pytest
import torch
from torch import nn

from ignite_prune import allocation, measure, prune_model
from ignite_prune.export import inference


def sparse_is_faster(calls, *, prepare=None, **more):
    """Stand for the times that decide which layers are replaced, so that the load of the machine does not."""
    for call, ready in zip(calls, prepare or [lambda: None] * len(calls)):
        ready()
        call()
    return [3.0] + [1.0] * (len(calls) - 1)


def test_every_engine_runs_the_model(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(inference, "interleaved", sparse_is_faster)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8)).train(), torch.randn(16, 512)
    prune_model(model, sparsity=0.98, allocation=allocation.Uniform())
    before = copy.deepcopy(model.state_dict())
    target = model(x).argmax(1)

    def agreement(call):
        return (call(x).argmax(1) == target).float().mean()

    names = ["float32", "sparse layers", "bfloat16", "int8", "onnxruntime int8"]
    found = measure.engines(model, x, only=names[1:], evaluate=agreement)
    assert [each.name for each in found.rows] == names and found.threads == torch.get_num_threads()
    first, sparse, *_ = found.rows
    assert (first.gain, first.difference, first.value) == (1, 0, 1) and sparse.note == "2 of 2 layers replaced"
    assert all(
        0 < each.seconds < 10 and each.gain > 0 and each.difference < 0.1 and each.value > 0.7 for each in found.rows
    )
    lines = str(found).splitlines()
    assert lines[0].split() == ["engine", "latency", "speed-up", "difference", "value", "note"] and len(lines) == 7
    assert model.training and all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert type(model[0]) is nn.Linear


def test_engines_that_cannot_run_say_why():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x * self.weight.double().float() if x.dtype == torch.float32 else 1 / 0

    found = measure.engines(Strange(), torch.ones(2, 4), only=["bfloat16", "int8", "sparse layers"])
    assert [each.note for each in found.rows] == [
        "",
        "not run: no layer is faster",
        "not run: division by zero",
        "not run: there is no linear layer",
    ]
    assert "division by zero" in str(found)
    for error, options in (
        (TypeError, {"only": "int8"}),
        (ValueError, {"only": ["int4"]}),
        (TypeError, {"evaluate": 3}),
        (TypeError, {"example_inputs": 3}),
        (ValueError, {"example_inputs": torch.ones(2, 5)}),
    ):
        with pytest.raises(error):
            measure.engines(Strange(), **{"example_inputs": torch.ones(2, 4), **options})
