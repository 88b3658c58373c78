"""Layers without inputs or outputs, and parameters of one dimension or none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ignite_prune import allocation, pattern, prune_model, repair, saliency, score

EMPTY = [
    saliency.Magnitude(),
    saliency.Random(),
    saliency.Gradient(),
    saliency.Taylor(),
    saliency.SNIP(),
    saliency.GraSP(),
    saliency.SynFlow(rounds=2),
    saliency.OBD(),
    saliency.OBD(saliency.Exact()),
    saliency.OBD(saliency.GaussNewton()),
    saliency.OBD(saliency.Hutchinson()),
    saliency.OBS(block=16, damping=1e-3),
    saliency.Wanda(),
    saliency.SparseGPT(),
]
EMPTY_UNITS = [
    saliency.FPGM(),
    saliency.Taylor(by_unit=True),
    saliency.APoZ(),
    saliency.Sensitivity(),
    saliency.ActivationTaylor(),
    saliency.Shapley(samples=2),
]


def hollow():
    """Two layers between which nothing flows, before two with weights."""
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Linear(3, 0), nn.ReLU(), nn.Linear(0, 2)
    return nn.Sequential(*empty, nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))


def data():
    return [(torch.randn(4, 3), torch.randint(2, (4,)))]


@pytest.mark.parametrize("formula", EMPTY, ids=repr)
def test_an_empty_weight_has_empty_scores(formula):
    options = {"saliency": formula, "data": data(), "loss_fn": F.cross_entropy}
    scores = score(hollow(), **options)
    assert {n: tuple(s.shape) for n, s in scores.items()} == {
        "0.weight": (0, 3),
        "2.weight": (2, 0),
        "3.weight": (5, 2),
        "5.weight": (2, 5),
    }
    model = hollow()
    assert prune_model(model, sparsity=0.5, allocation=allocation.Uniform(), **options).sparsity == 0.5


@pytest.mark.parametrize("formula", EMPTY_UNITS, ids=repr)
def test_a_layer_without_units_has_no_scores(formula):
    scores = score(hollow(), saliency=formula, data=data(), loss_fn=F.cross_entropy)
    assert {n: tuple(s.shape) for n, s in scores.items()} == {
        "0.weight": (0,),
        "2.weight": (2,),
        "3.weight": (5,),
        "5.weight": (2,),
    }


@pytest.mark.parametrize("each", [repair.OBS(), repair.SparseGPT(), repair.Bias(), repair.DSnoT()], ids=repr)
def test_repairs_pass_over_empty_weights(each):
    masks = prune_model(hollow(), sparsity=0.5, repair=each, data=data(), loss_fn=F.cross_entropy)
    assert masks.sparsity == 0.5


class TurnedEmpty(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 0)), nn.Parameter(torch.randn(0, 2))

    def forward(self, x):
        return x @ self.a @ self.b


@pytest.mark.parametrize("formula", [saliency.Wanda(), saliency.SparseGPT()], ids=repr)
def test_empty_weights_the_other_way_round(formula):
    scores = score(TurnedEmpty(), "*", saliency=formula, data=data())
    assert {n: tuple(s.shape) for n, s in scores.items()} == {"a": (3, 0), "b": (0, 2)}


# One dimension or none


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.layer(x) * self.scale


def test_fpgm_takes_an_entry_of_a_vector_for_a_unit():
    formula = saliency.FPGM()
    assert formula("bias", torch.tensor([0.0, 1.0, 4.0])).tolist() == [5, 4, 7]
    assert formula("scale", torch.tensor(2.0)).shape == ()
    assert {n: tuple(s.shape) for n, s in score(Scaled(), "*", saliency=formula).items()} == {
        "scale": (),
        "layer.weight": (2,),
        "layer.bias": (2,),
    }


def test_taylor_by_unit_takes_an_entry_of_a_vector_for_a_unit():
    model, batches = Scaled(), [(torch.randn(4, 3), torch.randn(4, 2))]
    options = {"data": batches, "loss_fn": F.mse_loss}
    units = score(model, "*", saliency=saliency.Taylor(by_unit=True), **options)
    entries = score(model, "*", saliency=saliency.Taylor(), **options)
    assert units["layer.weight"].shape == (2,)
    for name in ("scale", "layer.bias"):
        torch.testing.assert_close(units[name], entries[name])


@pytest.mark.parametrize("formula", [saliency.FPGM(), saliency.Taylor(by_unit=True)], ids=repr)
def test_vectors_are_pruned_by_unit(formula):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    masks = prune_model(
        model,
        "*",
        sparsity=0.5,
        saliency=formula,
        pattern=pattern.Channel(),
        allocation=allocation.Uniform(),
        data=[(torch.randn(4, 3), torch.randn(4, 2))],
        loss_fn=F.mse_loss,
    )
    assert {name: masks.kept(name) for name in masks if masks.parameters[name].ndim == 1} == {
        "0.bias": 2,
        "1.weight": 2,
        "1.bias": 2,
        "2.bias": 1,
    }


@pytest.mark.parametrize("shape", [(6,), (1, 6), (), (6, 4)])
def test_change_refuses_a_start_of_another_shape(shape):
    model = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(ValueError, match=r"'0.weight' .*\(4, 6\), but given " + rf"\({str(shape)[1:-1]}\)"):
        score(model, saliency=saliency.Change(initial={"0.weight": torch.ones(shape)}))
