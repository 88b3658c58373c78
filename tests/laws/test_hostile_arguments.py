"""Law 9 against hostile arguments: TypeError or ValueError at the door, or accepted; never another exception."""

import pytest

from tests.hostile_arguments import attacked, calls

pytestmark = pytest.mark.filterwarnings("ignore")  # of what is accepted
SLOW = ("trace", "prune_model")


@pytest.mark.parametrize("name", [name for name in calls() if name not in SLOW])
def test_a_hostile_argument_is_refused_by_name(name):
    outcomes = dict(attacked(name, 17))  # other values of each argument
    assert not {where: outcome for where, outcome in outcomes.items() if outcome not in ("refused", "accepted")}
