"""Law 7 against hostile states: one is refused by name and nothing has changed, or it loads and training goes on."""

import pytest

from tests.hostile import attacked, runs

STATES, SEED = 8, 2026
RUNS = runs()
NAMES = [  # a run of each kind of state
    *(f"handler {name}" for name in ("set", "rigl", "sparse_momentum", "top_kast", "sr_ste", "learnt_threshold")),
    *(f"saliency {name}" for name in ("random", "taylor", "obd_hutchinson", "obs", "wanda", "heads", "synflow")),
    *("handler group_lasso", "handler progressive", "shrinks", "rounds", next(n for n in RUNS if "sparsifier" in n)),
]

pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_state_is_refused_whole_or_loads(name):
    outcomes = dict(attacked(RUNS[name], STATES, SEED))
    assert "refused" in outcomes.values()
    wrong = {where: outcome for where, outcome in outcomes.items() if outcome not in ("refused", "loaded")}
    assert not {w: o for w, o in wrong.items() if not o.startswith("named later")}
