"""What an earlier version wrote loads into this one, and the run goes on as it would have gone on there."""

from pathlib import Path

import pytest
import torch

from tests.models import assert_same_bits
from tests.states.runs import ENDS, ROWS

FOLDER = Path(__file__).parent / "version_2"
# Keys whose values tell which version wrote them, or what evidence is called there.
TOLD = {"version", "need"}
pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")


def without_told(state):
    if isinstance(state, dict):
        return {key: without_told(value) for key, value in state.items() if key not in TOLD}
    return [without_told(each) for each in state] if isinstance(state, list) else state


@pytest.mark.parametrize("name", ROWS)
def test_a_state_of_version_2_loads_and_its_run_goes_on(name):
    torch.manual_seed(0)
    saved = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    run = ROWS[name]()
    run.load(saved["state"])
    assert_same_bits(without_told(run.state()), without_told(saved["state"]))
    run.go(ENDS)
    end = run.objects["model"].state_dict()
    assert list(end) == list(saved["end"])
    for key, tensor in end.items():  # another processor rounds otherwise: equal in what is pruned, close in what is not
        torch.testing.assert_close(tensor, saved["end"][key], rtol=1e-4, atol=1e-6)
        assert torch.equal(tensor == 0, saved["end"][key] == 0), key
