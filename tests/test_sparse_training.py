"""The example that compares ways of training sparsely: it runs, and says what it should."""

import importlib
import json
from dataclasses import replace

import pytest

from tests.examples import EXAMPLES, run_example


def test_end_to_end(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    tasks = importlib.import_module("sparse_tasks")
    for name in ("DIGITS", "LANGUAGE"):  # 40 iterations of a training
        monkeypatch.setattr(tasks, name, replace(getattr(tasks, name), iterations=200))
    told = run_example("sparse_training", "--quick", "--all", "--seeds", 1, "--workers", 1, "--output", tmp_path)
    records = json.loads((tmp_path / "figures.json").read_text())["records"]
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert len(records) == 22 and "RigL against SET" in told and "Top-KAST against RigL" in told
    for record in records:
        if record["method"] == "SRigL":
            assert 0.98 <= record["sparsity"] < 0.99  # the fan-in is rounded down
        elif record["method"] == "STR":
            assert 0 < record["sparsity"] < 1  # learnt
        else:
            assert record["sparsity"] == pytest.approx(0 if record["method"] == "dense" else 0.98, abs=1e-4)


def test_help_and_refusals(tmp_path):
    told = run_example("sparse_training", "--help")
    for option in ("--quick", "--all", "--seeds", "--sparsity", "--workers", "--output"):
        assert option in told
    told = run_example("sparse_training", "--sparsity", "1.5", "--output", tmp_path, ok=False)
    assert "Traceback" not in told and "--sparsity" in told and "1.5" in told
