"""Evidence where models and loops are not plain: in-place calls, sequences, closures, overflow, compiled modules."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ignite_prune import PruneHandler, pattern, saliency, score


class Residual(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.conv, self.norm, self.out = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.in_place:
            y += x
        else:
            y = y + x
        return self.out(torch.relu(y).mean((2, 3)))


@pytest.mark.parametrize("formula", [saliency.ActivationTaylor(), saliency.Sensitivity(), saliency.APoZ()])
def test_in_place_residual(formula):
    torch.manual_seed(0)
    plain, in_place = Residual(False), Residual(True)
    in_place.load_state_dict(plain.state_dict())
    data = [(torch.randn(6, 3, 5, 5), torch.randint(2, (6,)))]
    found = [score(m, "conv.weight", saliency=formula, data=data, loss_fn=cross_entropy) for m in (plain, in_place)]
    torch.testing.assert_close(found[0], found[1])


class Attending(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        return self.out(self.attention(x, x, x)[0].mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("formula", [saliency.ActivationTaylor(), saliency.Sensitivity(), saliency.APoZ()])
@pytest.mark.parametrize("name", ["attention.in_proj_weight", "attention.out_proj.weight"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("length", [4, 5])
def test_samples_of_attention_are_told_apart(formula, name, batch_first, length):
    torch.manual_seed(0)
    model = Attending(batch_first).double()
    x, y = torch.randn(5, length, 8).double(), torch.randint(3, (5,))
    one_by_one = [(x[i : i + 1], y[i : i + 1]) for i in range(5)]
    at_once, apart = (
        score(model, name, saliency=formula, data=data, loss_fn=cross_entropy) for data in ([(x, y)], one_by_one)
    )
    torch.testing.assert_close(at_once, apart)


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.LBFGS])
def test_closure_tells_the_gradients_of_its_own_step(optimizer, by_keyword):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    stepper = optimizer(model.parameters(), lr=0.1)
    pruner = PruneHandler(model, stepper, saliency=saliency.Gradient())
    expected = torch.zeros(2, 3)
    for _ in range(3):
        x, y, first = torch.randn(5, 3), torch.randint(2, (5,)), True

        def closure(x=x, y=y):
            nonlocal first, expected
            stepper.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            if first:
                expected, first = expected + model.weight.grad.abs(), False
            return loss

        loss = stepper.step(closure=closure) if by_keyword else stepper.step(closure)
        assert loss is not None
    torch.testing.assert_close(pruner.scores()["weight"], expected)


@pytest.mark.parametrize("formula", [saliency.ActivationTaylor(), saliency.Sensitivity()])
def test_overflow_under_a_scaler_is_not_counted(formula):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    pruner = PruneHandler(model, optimizer, "0.weight", saliency=formula, scaler=scaler, pattern=pattern.Channel())
    scales = set()
    for _ in range(30):
        x, y = torch.randn(16, 6) * 3, torch.randint(3, (16,))
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.add(scaler.get_scale())
    assert len(scales) > 1  # some steps overflowed
    pruner.step(0.5)
    assert pruner.masks["0.weight"].any(1).sum() == 4


def test_compiled_in_place_runs_eagerly_over_data():
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 6)
    expected = score(model, saliency=saliency.Wanda(), data=[x])
    model.compile(backend="eager")
    torch.testing.assert_close(score(model, saliency=saliency.Wanda(), data=[x]), expected)
    part = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    part.load_state_dict(model.state_dict())
    part[0].compile(backend="eager")
    data, formula = [(x, torch.randint(2, (8,)))], saliency.Shapley()
    scored = [
        score(
            each,
            "0.weight",
            saliency=formula,
            data=data,
            loss_fn=cross_entropy,
            generator=torch.Generator().manual_seed(0),
        )
        for each in (model, part)
    ]
    torch.testing.assert_close(scored[0], scored[1])


def test_inference_mode_does_not_matter():
    model, data = nn.Linear(6, 2), [(torch.randn(8, 6), torch.randint(2, (8,)))]
    expected = score(model, saliency=saliency.Taylor(), data=data, loss_fn=cross_entropy)
    with torch.inference_mode():
        found = score(model, saliency=saliency.Taylor(), data=data, loss_fn=cross_entropy)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "formula", [saliency.GraSP(), saliency.OBD(saliency.Exact()), saliency.OBD(saliency.Hutchinson(2))]
)
def test_second_derivatives_of_attention(formula):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
    data = [(torch.randn(3, 2, 4), torch.zeros(3))]
    scores = score(model, saliency=formula, data=data, loss_fn=lambda output, y: output.square().mean((1, 2)).mean())
    assert scores["self_attn.in_proj_weight"].ne(0).any()


class Output(OrderedDict):
    """What transformers' models give: a mapping with attributes."""

    __getattr__ = OrderedDict.__getitem__


@dataclass
class Record:
    logits: torch.Tensor


@pytest.mark.parametrize("kind", [Output, Record])
def test_outputs_that_are_records(kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return kind(logits=self.linear(x))

    torch.manual_seed(0)
    model, data = Model(), [(torch.randn(5, 4), torch.randint(3, (5,)))]
    loss_fn = lambda output, y: cross_entropy(output.logits, y)  # noqa: E731
    if kind is Record:
        with pytest.raises(TypeError, match="temperature"):
            score(model, saliency=saliency.GraSP(), data=data, loss_fn=loss_fn)
        return
    found = score(model, saliency=saliency.GraSP(), data=data, loss_fn=loss_fn)["linear.weight"]
    expected = score(model.linear, saliency=saliency.GraSP(), data=data, loss_fn=cross_entropy)["weight"]
    torch.testing.assert_close(found, expected)
