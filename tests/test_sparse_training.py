"""The example that compares ways of training sparsely: it runs, and says what it should."""

import json

import pytest

from tests.test_examples import digits


def test_end_to_end(tmp_path):
    told = digits("--quick", "--seeds", 1, "--workers", 1, "--output", tmp_path, example="sparse_training")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert len(figures["records"]) == 12 and "RigL against SET" in told
    for record in figures["records"]:
        expected = 0 if record["method"] == "dense" else 0.98
        assert record["sparsity"] == pytest.approx(expected, abs=1e-4)


def test_help_and_refusals(tmp_path):
    told = digits("--help", example="sparse_training")
    for option in ("--quick", "--seeds", "--sparsity", "--workers", "--output"):
        assert option in told
    told = digits("--sparsity", "1.5", "--output", tmp_path, example="sparse_training", ok=False)
    assert "Traceback" not in told and "--sparsity" in told and "1.5" in told
