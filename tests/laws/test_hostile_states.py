"""Law 7 against hostile states: one is refused by name and nothing has changed, or it loads and training goes on."""

import pytest

from tests.hostile import attacked, runs

STATES, SEED = 12, 2026
RUNS = {name: options for name, options in runs().items() if not name.endswith(("_decays", "_rising"))}
ALIKE = [name for name in RUNS if name.startswith("sparsifier")][3:]

pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ALIKE])
def test_a_hostile_state_is_refused_whole_or_loads(name):
    outcomes = dict(attacked(RUNS[name], STATES, SEED))
    assert "refused" in outcomes.values()
    wrong = {where: outcome for where, outcome in outcomes.items() if outcome not in ("refused", "loaded")}
    assert not {w: o for w, o in wrong.items() if not o.startswith("named later")}
