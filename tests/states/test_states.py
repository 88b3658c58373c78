"""What an earlier version wrote loads into this one, and the run goes on as it would have gone on there."""

from pathlib import Path

import pytest
import torch

from ignite_prune import saliency
from ignite_prune._utils.pairs import from_pairs
from ignite_prune.saliency.needs import Gradients
from tests.models import assert_same_bits
from tests.states.runs import ENDS, ROWS

FOLDER = Path(__file__).parent / "version_2"
# Keys whose values tell which version wrote them, or what evidence is called there.
TOLD = {"version", "need"}
pytestmark = pytest.mark.filterwarnings("ignore:Pruning left less than 1 %")


def without_told(state):
    state = from_pairs(state)  # versions 2 and 3 had mappings for pairs, and lists for tuples
    if isinstance(state, (dict, list, tuple)) and not state:
        return None
    if isinstance(state, dict):
        return {
            key: without_told(value)
            for key, value in sorted(state.items(), key=lambda item: str(item[0]))
            if key not in TOLD
        }
    return [without_told(each) for each in state] if isinstance(state, (list, tuple)) else state


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


KEYS = [
    (saliency.Gradient(), "gradients/abs"),
    (saliency.Taylor(), "gradients/abs-product/mean"),
    (saliency.Taylor(squared=True, by_unit=True), "gradients/square-product/mean/by-unit"),
    (
        saliency.Taylor(memory=saliency.Memory(0.9, torch.float64, True)),
        "gradients/abs-product/mean/decay=0.9/float64/lasting",
    ),
    (saliency.Movement(), "gradients/product/lasting"),
    (saliency.SNIP(), "gradients/product"),
    (saliency.SNIPMomentum(), "gradients/abs-product/decay=0.9/lasting"),
    (saliency.OBD(), "gradients/square/mean/per-sample"),
    (saliency.OBD(saliency.Exact()), "curvature/exact"),
    (saliency.OBD(saliency.GaussNewton()), "curvature/gauss-newton"),
    (saliency.OBD(saliency.Hutchinson(2, seed=5)), "curvature/hutchinson/samples=2/seed=5"),
    (saliency.Change(), "initial"),
    (saliency.GraSP(), "hessian-gradient/temperature=200.0"),
    (saliency.SynFlow(), "synaptic-flow"),
    (saliency.OBS(block=16), "fisher-blocks/16"),
    (saliency.Wanda(), "input-norms"),
    (saliency.SparseGPT(), "input-moments"),
    (saliency.APoZ(), "activations/active-share"),
    (saliency.HRank(), "activations/rank/maps"),
    (saliency.Sensitivity(), "activations/abs-gradient/gradient"),
    (saliency.ActivationTaylor(), "activations/abs-product/gradient"),
    (saliency.BatchNormScale(), "following-scale"),
    (saliency.HeadImportance(), "head-gates"),
    (saliency.Shapley(samples=3), "unit-removal/samples=3/seed=0/exact=8"),
]


@pytest.mark.parametrize(("formula", "key"), KEYS, ids=[key for _, key in KEYS])
def test_evidence_has_a_key_that_does_not_depend_on_names_in_the_code(formula, key):
    assert formula.need.key == key


def test_functions_of_a_user_are_told_apart():
    first, second = Gradients(lambda s, g, w: s + g), Gradients(lambda s, g, w: s - g)
    assert first.key != second.key
    assert Gradients(first.term, name="mine").key == "gradients/mine"


def test_evidence_of_another_saliency_is_refused_and_nothing_changes():
    saved = torch.load(FOLDER / "taylor.pt", weights_only=True)["state"]["pruner"]
    pruner = ROWS["gradient"]().objects["pruner"]
    before = pruner.state_dict()
    told = r"written with state version 2.*add_product_size.*gathers 'gradients/abs'.*replace each entry"
    with pytest.raises(ValueError, match=told):
        pruner.load_state_dict(saved)
    assert_same_bits(pruner.state_dict(), before)
    pruner.load_state_dict({**saved, "evidence": [{} for _ in saved["evidence"]]})  # what the error says to do
    assert_same_bits(dict(pruner.masks), pruner.masks.unpacked(saved["masks"]))
