"""The command line: what each command prints and writes, its exit codes, and no traceback for a user's mistake."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import DeterministicEngine
from torch import nn
from torch.nn.utils import prune as torch_prune

pytest.importorskip("typer")
from typer.testing import CliRunner

from ignite_prune import PruneHandler, export
from ignite_prune.cli.app import app
from ignite_prune.report.checkpoint_file import read_file
from ignite_prune.report.layers import layers_of, total_of

MODULE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

def with_input():
    return net(), torch.randn(3, 8)

def inputs():
    return torch.randn(3, 8)

def thin():
    model = net()
    with torch.no_grad():
        model[0].weight[:6] = 0
        model[0].bias[:6] = 0
        model[2].weight[:, :6] = 0
    return model, torch.randn(3, 8)

def batches():
    return [(torch.randn(3, 8), torch.randint(4, (3,))) for _ in range(2)]

def evaluate(model):
    return float((model[0].weight != 0).float().mean())

def broken():
    return 1 / 0

number = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    (path / "my_models.py").write_text(MODULE)
    (path / "prune.yaml").write_text(
        "epochs: 4\nschedule: {type: Polynomial, final: 0.75, begin: 0, end: 3}\nsaliency: random\nseed: 1\n"
    )
    (path / "sparseml.yaml").write_text(
        "modifiers:\n  - !GMPruningModifier {final_sparsity: 0.8, end_epoch: 4, params: __ALL_PRUNABLE__}\n"
    )
    return path


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def call(*args, code=0):
        result = CliRunner().invoke(app, [str(each) for each in args])
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        return result

    return call


def test_inspect_a_model_and_files(run, folder):
    assert "Linear" in run("inspect", "my_models:net").output
    found = json.loads(run("inspect", "my_models:thin", "--json").stdout)
    assert found["layers"][0]["sparsity"] > 0.3
    model = nn.Linear(4, 2)
    torch_prune.l1_unstructured(model, "weight", 0.5)
    torch.save({"epoch": 3, "model": model.state_dict()}, "masked.pt")
    found = json.loads(run("inspect", "masked.pt", "--json").stdout)
    assert {row["name"]: row["sparsity"] for row in found["tensors"]} == {"weight": 0.5, "bias": 0.0}
    assert found["sparsity_of"] == "NAME_mask" and "total" in run("inspect", "masked.pt").output

    model = nn.Linear(4, 2)
    pruner = PruneHandler(model)
    pruner.step(0.25)
    torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, "run.pt")
    found = json.loads(run("inspect", "run.pt", "--json").stdout)
    assert found["tensors"][0]["kept"] == 6 and found["sparsity_of"] == "the pruner's masks"


def test_plan_draws_the_schedule_and_counts(run):
    shown = run("plan", "prune.yaml", "--model", "my_models:net").output
    assert "to 75.00%" in shown and "▆" in shown and "updates: 3, at epoch 1 to 3" in shown
    found = json.loads(run("plan", "prune.yaml", "--model", "my_models:net", "--json").stdout)
    assert found["entries"] == 192 and found["groups"][0]["final"] == 0.75
    said = run("plan", "prune.yaml", "--model", "my_models:net", "--epochs", 9, code=0)
    assert said.exit_code == 0
    assert "line 2" in run("plan", "sparseml.yaml", "--model", "my_models:net", code=2).output


def test_plan_refuses_a_run_that_is_too_short(run, folder):
    (folder / "taylor.yaml").write_text("saliency: Taylor\nschedule: {type: Linear, final: 0.5, begin: 1, end: 6}\n")
    shown = run("plan", "taylor.yaml", "--model", "my_models:net", "--epochs", 8).output
    assert "updates: 5, at epoch 2 to 6" in shown and "evidence: gradients/" in shown and "0x" not in shown
    said = run("plan", "taylor.yaml", "--model", "my_models:net", "--epochs", 4, code=2).output
    assert "ends at 6, but the run has 4 epochs" in said


def test_checkpoints_of_a_deterministic_engine_are_read(run, folder):
    model, engine = nn.Linear(4, 2), DeterministicEngine(lambda engine, batch: None)
    engine.run([0], max_epochs=1)
    torch.save({"model": model.state_dict(), "trainer": engine.state_dict()}, "deterministic.pt")
    assert json.loads(run("inspect", "deterministic.pt", "--json").stdout)["total"]["entries"] == 10
    torch.save({"model": model}, "whole.pt")
    assert (
        "holds objects of torch.nn.modules.linear.Linear; save the states" in run("inspect", "whole.pt", code=2).output
    )


def test_statistics_of_norms_are_not_parameters(run, folder):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    pruner = PruneHandler(model, compress_masks=True)
    pruner.step(0.5)
    torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, "norm.pt")
    found = json.loads(run("inspect", "norm.pt", "--json").stdout)
    assert found["total"]["sparsity"] == pruner.model_sparsity
    assert total_of(layers_of(read_file(Path("norm.pt")), None)).sparsity == pruner.model_sparsity
    assert "3 buffers are left out" in run("inspect", "norm.pt").output


def test_prune_writes_what_it_shows(run, folder):
    found = json.loads(run("prune", "my_models:net", "-s", 0.5, "-o", "half.safetensors", "--json").stdout)
    assert found["sparsity"] == 0.5
    assert sum(int(each.sum()) for each in export.read("half.safetensors").masks.values()) == 96
    args = ["--saliency", "{type: Taylor, squared: true}", "--data", "my_models:batches", "--loss", "cross_entropy"]
    found = json.loads(run("prune", "my_models:net", "-s", 0.25, "--params", "0.*t", *args, "--json").stdout)
    assert list(found["parameters"]) == ["0.weight"] and found["sparsity"] == 0.25
    found = json.loads(run("prune", "my_models:net", "--recipe", "prune.yaml", "--json").stdout)
    assert found["sparsity"] == 0.75
    assert "exists" in run("prune", "my_models:net", "-s", 0.5, "-o", "half.safetensors", code=2).output
    args = ["--state", "half.safetensors", "--json"]
    assert json.loads(run("export", "my_models:net", "again.pt", *args).stdout)["bytes"] > 0
    assert float((torch.load("again.pt")["0.weight"] == 0).float().mean()) > 0


def test_shrink_export_bench_and_sensitivity(run):
    found = json.loads(run("shrink", "my_models:thin", "-o", "small.pt", "--json").stdout)
    assert found["after"]["parameters"] < found["before"]["parameters"]
    from ignite_prune import load_shrunk

    fresh = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    assert load_shrunk(fresh, "small.pt")[0].out_features == 10
    found = json.loads(run("bench", "my_models:with_input", "--steps", 3, "--json").stdout)
    assert found["dense_step"] > 0 and found["update"] > 0
    assert "this needs example inputs" in run("bench", "my_models:net", code=2).output
    args = ["my_models:net", "--evaluate", "my_models:evaluate", "-s", 0.5]
    found = json.loads(run("sensitivity", *args, "--json").stdout)
    assert found["baseline"] == 1.0 and found["layers"][0]["points"][0]["value"] == 0.5
    assert "0.weight" in run("sensitivity", *args).output
    assert "wrote page.md" in run("report", "my_models:net", "-o", "page.md").output


def test_convert_reports_and_writes(run, folder):
    result = run("convert", "sparseml.yaml", "-o", "ours.yaml")
    assert "translated: line 2, GMPruningModifier" in result.stderr
    assert "to 80.00%" in run("plan", "ours.yaml", "--model", "my_models:net", "--steps-per-epoch", 5).output
    found = json.loads(run("convert", "sparseml.yaml", "--json").stdout)
    assert found["report"][0]["outcome"] == "translated" and "prune" in found["recipe"]
    (folder / "rates.yaml").write_text("modifiers:\n  - !SetLearningRateModifier {learning_rate: 0.1}\n")
    assert "handed on" in run("convert", "rates.yaml", code=2).output


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["inspect", "none.pt"], 2, "there is no file"),
        (["inspect", "prune.yaml"], 2, "is not a checkpoint"),
        (["inspect", "my_modles:net"], 2, "there is no module 'my_modles'"),
        (["inspect", "my_models:nett"], 2, "near matches: 'net'"),
        (["inspect", "my_models:number"], 2, "should return a torch.nn.Module"),
        (["inspect", "my_models:broken"], 1, "raised ZeroDivisionError: division by zero (my_models.py, line"),
        (["inspect", "other.py:net"], 2, "there is no file 'other.py'"),
        (["prune", "my_models:net"], 2, "give --sparsity or --recipe"),
        (["prune", "my_models:net", "-s", "50"], 2, "0.5"),
        (["prune", "my_models:net", "-s", "0.5", "--saliency", "tailor"], 2, "near matches: 'Taylor'"),
        (["prune", "my_models:net", "-s", "0.5", "--saliency", "taylor"], 2, "data"),
        (["prune", "my_models:net", "-s", "0.5", "--loss", "cross_entropi"], 2, "near matches: 'cross_entropy'"),
        (["plan", "none.yaml", "--model", "my_models:net"], 2, "there is no such file"),
        (["convert", "my_models.py"], 2, "error"),
        (["shrink", "my_models:net"], 2, "example inputs"),
        (["export", "my_models:net", "x.txt"], 2, "should end in"),
        (["prnue"], 2, "No such command"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(run, args, code, says):
    assert says in run(*args, code=code).output.replace("\n", " ")


def test_help_says_what_runs_code(run):
    for name in ("inspect", "plan", "prune", "shrink", "sensitivity", "export", "report", "convert", "bench"):
        shown = run(name, "--help").output
        assert name == "convert" or "runs its code" in shown.replace("\n", " ").replace("  ", " "), name


def test_the_module_runs_as_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ignite-prune", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ignite_prune", run_name="__main__")
    assert not ended.value.code and capsys.readouterr().out.startswith("ignite-prune ")
