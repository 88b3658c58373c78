"""Schedules against the official programs and published numbers."""

import numpy as np
import pytest

from ignite_prune import schedule
from tests.golden_values import arrays

FILE = "schedules"


def table():
    return arrays(FILE)


def ramp(kind, **more):
    t = table()
    return kind(float(t["sf"]), begin=int(t["begin"]), end=int(t["end"]), initial=float(t["si"]), **more)


def over_steps(s):
    return [s(int(step)) for step in table()["steps"]]


@pytest.mark.parametrize(
    "power", [key[6:-4] for key in arrays(FILE) if key.startswith("poly_p") and key.endswith("_f64")]
)
def test_polynomial(power):
    found = over_steps(ramp(schedule.Polynomial, power=int(power)))
    np.testing.assert_allclose(found, table()[f"poly_p{power}_f64"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found, table()[f"tfmot_poly_p{power}_sparsity_f32"], rtol=1e-5, atol=1e-6)


def test_linear_and_cubic():
    np.testing.assert_allclose(over_steps(ramp(schedule.Linear)), table()["linear_f64"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(over_steps(ramp(schedule.Polynomial)), table()["zhu_gupta_cubic"], rtol=1e-9, atol=1e-12)
    zhu_gupta = schedule.Polynomial(0.9, begin=0, end=4)
    assert [zhu_gupta(x) for x in (1, 2, 3)] == pytest.approx([0.520312, 0.7875, 0.885938], abs=1e-6)


def test_exponential():
    t = table()
    s = schedule.Exponential(float(t["sf"]), begin=0, end=int(t["total"]), initial=float(t["si"]))
    np.testing.assert_allclose(s.values(int(t["total"]) + 1), t["inc_exp"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("cos", schedule.Cosine, {}),
        ("lin", schedule.Linear, {}),
        ("agp", schedule.Polynomial, {}),
        ("onecycle", schedule.OneCycle, {}),
        ("onecycle_alpha_beta", schedule.OneCycle, {"free": True}),
    ],
)
def test_fasterai(name, kind, more):
    t = table()
    if more.pop("free", False):
        more = dict(zip(("alpha", "beta"), map(float, t["onecycle_alpha_beta"])))
    s = kind(float(t["sf"]), begin=0, end=1, initial=float(t["si"]), **more)
    inside = (t["pos"] > 0) & (t["pos"] < 1)  # our ends are exact: initial and final
    found = np.array([s(float(x)) for x in t["pos"]])
    np.testing.assert_allclose(found[inside], t[f"fasterai_{name}"][inside], rtol=1e-9, atol=1e-12)
    assert found[0] == t["si"] and found[-1] == t["sf"]


def test_one_cycle_published():
    s = schedule.OneCycle(1.0, begin=0, end=4)
    assert [s(x) for x in (1, 2, 3)] == pytest.approx([0.07588, 0.73130, 0.98934], abs=5e-6)


def test_geometric_is_the_lottery_tickets():
    t = table()
    s = schedule.Geometric(rate=float(t["lth_fraction_per_round"]), every=1)
    density = [1 - value for value in s.values(len(t["lth_density"]))]
    np.testing.assert_allclose(density, t["lth_density"], rtol=1e-9)
    assert [round(100 * d, 1) for d in density[1:8]] == [80.0, 64.0, 51.2, 41.0, 32.8, 26.2, 21.0]


@pytest.mark.parametrize(
    ("key", "s", "epochs"),
    [  # the first's last dense phase is twice as long as the others, so it is compared up to there
        ("acdc_imagenet_rn50_100ep_is_sparse", schedule.DenseSparse(0.9, begin=9, end=85, sparse=5, dense=5), 80),
        ("acdc_cifar_freq20_200ep_is_sparse", schedule.DenseSparse(0.9, begin=9, end=170, sparse=20, dense=20), 200),
    ],
)
def test_acdc_phases(key, s, epochs):
    sparse = arrays("dynamic_sparse")[key][:epochs]
    assert [value == 0.9 for value in s.values(len(sparse))] == list(sparse)
