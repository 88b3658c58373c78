"""The comparison of saliencies comes out in kind as published: what is informed beats what is not."""

import importlib
import json
from dataclasses import replace

from tests.examples import EXAMPLES, run_example


def shorten_fine_tuning(monkeypatch):
    """10 epochs for what is pruned at initialisation instead of 30; a part of one for the rest, without claims."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    nets = importlib.import_module("compare_nets")
    whole = nets.fine_tune

    def short(model, masks, data, epochs, seed):
        data = data if epochs > 1 else replace(data, train=data.train[:3])
        whole(model, masks, data, min(epochs, 10), seed)

    monkeypatch.setattr(nets, "fine_tune", short)


def compared(folder):
    """Run the comparison and return its accuracies."""
    run_example(
        "compare_saliencies",
        "--quick",
        "--seeds",
        1,
        "--conv-epochs",
        4,
        "--workers",
        1,
        "--output",
        folder,
    )
    assert {path.name for path in folder.iterdir()} == {"saliencies.png", "figures.csv", "figures.json"}
    rows = json.loads((folder / "figures.json").read_text())["accuracy"]
    return {
        (row["section"], row["method"], row["sparsity"]): row["tuned" if row["section"] == "at init" else "pruned"]
        for row in rows
    }


INFORMED = [
    "Magnitude, global",
    "Magnitude, LAMP",
    "SynFlow",
    "OBS + repair",
    "Wanda",
    "SparseGPT + repair",
    "Taylor in training",
    "OBD, Fisher in training",
    "Movement in training",
]


def informed_beats_random(figures):
    for method in INFORMED:
        assert figures["weights", method, 0.9] > figures["weights", "Random", 0.9] + 10, method


def inverted_is_worst(figures):
    for sparsity in (0.5, 0.9):
        found = {method: v for (section, method, s), v in figures.items() if section == "weights" and s == sparsity}
        worst = min(found.values())
        assert min(found["Magnitude, inverted"], found["OBD in training, inverted"]) == worst
        assert max(found["Magnitude, inverted"], found["OBD in training, inverted"]) < 15


def curvature_and_reconstruction_beat_magnitude(figures):
    at_90 = {method: v for (section, method, s), v in figures.items() if section == "weights" and s == 0.9}
    assert at_90["OBD, Fisher in training"] > at_90["Magnitude, global"] + 10
    assert at_90["SparseGPT + repair, by layer"] > at_90["Magnitude, uniform"] + 5


def taylor_is_poor_where_training_has_converged(figures):
    assert figures["weights", "Taylor", 0.9] < figures["weights", "Magnitude, global", 0.9]
    assert figures["weights", "Taylor", 0.9] < figures["weights", "Taylor in training", 0.9] - 10


def batch_norm_recovers_most(figures):
    for sparsity, gain in ((0.8, 10), (0.9, 40)):
        plain = figures["repair", "conv: magnitude", sparsity]
        assert figures["repair", "conv: magnitude + BatchNorm", sparsity] > plain + gain


def synaptic_flow_survives_what_magnitude_does_not(figures):
    assert figures["at init", "SynFlow", 0.98] > figures["at init", "Magnitude, global", 0.98] + 30


CLAIMS = [
    informed_beats_random,
    inverted_is_worst,
    curvature_and_reconstruction_beat_magnitude,
    taylor_is_poor_where_training_has_converged,
    batch_norm_recovers_most,
    synaptic_flow_survives_what_magnitude_does_not,
]


def test_the_comparison_comes_out_in_kind(tmp_path, monkeypatch):
    shorten_fine_tuning(monkeypatch)
    figures, failed = compared(tmp_path), []
    for claim in CLAIMS:  # one test, so that one worker runs the comparison
        try:
            claim(figures)
        except AssertionError as error:
            failed.append(f"{claim.__name__}: {error}")
    assert not failed, failed


def test_refusals(tmp_path):
    for wrong in (["--seeds", 0], ["--sparsities", 1.5], ["--workers", 0], ["--nonsense"]):
        told = run_example("compare_saliencies", *wrong, "--output", tmp_path, ok=False)
        assert "Traceback" not in told and "--help" in told
