"""Values of nupic.torch and of the papers' formulas."""

import pytest
import torch

from ignite_prune.activation import KWinners, KWinners2d, Lifetime
from tests.golden_values import arrays, tensor

NAME = "kwinners_lifetime"


def near(a, b):
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("break_ties", [0, 1])  # the inputs have no ties, so both are what ours is
def test_k_winners(break_ties, relu):
    golden, start = arrays(NAME), f"kw_bt{break_ties}_relu{relu}"
    layer = KWinners(
        density=float(golden["percent_on"]),
        boost=float(golden["boost_strength"]),
        period=int(golden["duty_cycle_period"]),
        inference=1.5,
        positive=bool(relu),
    )
    for step, x in enumerate(tensor(NAME, "x")):
        assert torch.equal(layer(x), tensor(NAME, f"{start}_y{step}"))
        near(layer.duty, tensor(NAME, f"{start}_duty{step}"))
        if step == 2:
            layer.boost.mul_(0.9)
    near(layer.boost, tensor(NAME, f"{start}_boost_after"))
    assert torch.equal(layer.eval()(tensor(NAME, "x")[0]), tensor(NAME, f"{start}_eval_y"))


@pytest.mark.parametrize("local", [0, 1])
def test_k_winners_2d(local):
    golden = arrays(NAME)
    layer = KWinners2d(
        density=float(golden["kw2d_percent_on"]),
        boost=float(golden["boost_strength"]),
        period=int(golden["duty_cycle_period"]),
        local=bool(local),
    )
    for step, x in enumerate(tensor(NAME, "x2d")):
        y, duty = tensor(NAME, f"kw2d_local{local}_y{step}"), tensor(NAME, f"kw2d_local{local}_duty{step}")
        assert torch.equal(layer(x), y)
        if not (y < 0).any():
            near(layer.duty, duty)
        assert (layer.duty >= duty - 1e-6).all()
        layer.duty.copy_(duty)  # nupic counts winners above 0 alone; ours all, as the paper


def test_k_winners_as_the_paper_has_it():
    # The paper's running mean starts from 0 with its full period: batch / period = alpha.
    golden, x = arrays(NAME), tensor(NAME, "x").double()
    period = round(x.shape[1] / float(golden["paper_alpha"]))
    layer = KWinners(k=int(golden["k"]), boost=float(golden["boost_strength"]), period=period)
    layer.seen.fill_(period)
    for step in range(len(x)):
        y = layer(x[step])
        near(y, tensor(NAME, f"paper_y{step}"))
        assert torch.equal(y != 0, tensor(NAME, f"paper_winner{step}"))
        near(layer.duty, tensor(NAME, f"paper_duty{step}"))


def test_lifetime():
    h, rate = tensor(NAME, "lifetime_h"), float(arrays(NAME)["lifetime_rate"])
    y = Lifetime(rate)(h)
    assert torch.equal(y != 0, tensor(NAME, "lifetime_mask")) and torch.equal(y, tensor(NAME, "lifetime_out"))


def test_lifetime_of_feature_maps():
    h, rate = tensor(NAME, "wta_conv_h"), float(arrays(NAME)["lifetime_rate"])
    assert torch.equal(Lifetime(1.0)(h) != 0, tensor(NAME, "wta_conv_spatial_mask"))
    assert torch.equal(Lifetime(rate)(h) != 0, tensor(NAME, "wta_conv_spatial_lifetime_mask"))
