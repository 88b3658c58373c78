"""What a new user runs first: the examples, their help and refusals, and the notebooks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.examples import run_example

ROOT = Path(__file__).parent.parent


def in_a_process(example, *arguments):
    command = [sys.executable, str(ROOT / "examples" / f"{example}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "110"}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_digits_end_to_end(tmp_path):
    told = run_example("digits", "--epochs", 4, "--output", tmp_path)
    assert "tensorboard --logdir" in told
    written = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert {".png", ".pt"} <= written and list(tmp_path.rglob("events.out.tfevents*"))
    assert "90.0" in told and "compression" in told.lower()


def test_help_and_refusals(tmp_path):
    told = run_example("digits", "--help")
    for option in ("--sparsity", "--schedule", "--epochs", "--seed", "--resume", "--output"):
        assert option in told
    told = run_example("digits", "--sparsity", "1.5", "--output", tmp_path, ok=False)
    assert "Traceback" not in told and "1.5" in told


def test_shrink_digits_end_to_end(tmp_path):
    told = run_example("shrink_digits", "--quick", "--epochs", 3, "--output", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "picture.png"}
    assert "equal to the bit" in told
    full, small = 445_386, sum(each.numel() for each in torch.load(tmp_path / "model.pt")["model"].values())
    assert f"{full:,}" in told and small < full / 3


def test_shrink_digits_help_and_refusals(tmp_path):
    told = run_example("shrink_digits", "--help")
    for option in ("--sparsity", "--epochs", "--seed", "--output", "--quick"):
        assert option in told
    file = tmp_path / "file"
    file.touch()
    for option, value in (("--sparsity", "1.5"), ("--epochs", "2"), ("--seed", "-1"), ("--output", file)):
        told = run_example("shrink_digits", option, value, ok=False)
        assert "Traceback" not in told and option in told and str(value) in told


def test_deploy_digits_end_to_end(tmp_path):
    pytest.importorskip("jinja2")
    told = run_example("deploy_digits", "--quick", "--width", 64, "--epochs", 2, "--output", tmp_path)
    files = {"sparse.safetensors", "2-4.safetensors", "sliced.pt", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == files
    for way in ("dense", "90 %, CSR layers", "2:4", "sliced by 75 %", "int8", "sliced, int8"):
        assert f"│ {way} " in told
    weights = torch.load(tmp_path / "sliced.pt")["model"]
    assert {len(weights[f"{layer}.weight"]) for layer in (0, 2, 4)} == {16}
    for option, value in (("--width", "3"), ("--epochs", "1"), ("--output", tmp_path / "sliced.pt")):
        told = run_example("deploy_digits", option, value, ok=False)
        assert "Traceback" not in told and option in told and str(value) in told


def test_lottery_ticket_end_to_end(tmp_path):
    told = in_a_process("lottery_ticket", "--quick", "--seeds", 1, "--epochs", 1, "--workers", 1, "--output", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"picture.png", "figures.csv"}
    assert "1.4%" in told and "too few seeds to tell" in told


def test_lottery_ticket_help_and_refusals(tmp_path):
    told = run_example("lottery_ticket", "--help")
    for option in ("--seeds", "--epochs", "--lr", "--workers", "--output", "--quick"):
        assert option in told
    told = run_example("lottery_ticket", "--seeds", "0", "--output", tmp_path, ok=False)
    assert "Traceback" not in told and "--seeds" in told and "0" in told


# Cells that a kernel runs before a notebook: a third of the digits, so that training is short.
FEW_DIGITS = """
%reset -f
import sklearn.datasets, sklearn.utils
if not hasattr(sklearn.datasets, "all_digits"):
    sklearn.datasets.all_digits = sklearn.datasets.load_digits
def load_digits():
    import sklearn.datasets, sklearn.utils
    digits = sklearn.datasets.all_digits()
    parts = {name: digits[name][::3] for name in ("data", "images", "target")}
    return sklearn.utils.Bunch(**parts)
sklearn.datasets.load_digits = load_digits
"""
SHORTER = {
    "02_saliency": {
        "max_epochs=12": "max_epochs=4",
        "make_trained(seed) for seed in range(1, 4)": "make_trained(seed) for seed in range(1, 2)",
        "levels = [0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98]": "levels = [0.5, 0.7, 0.9, 0.95]",
    },
    "03_structured": {"EPOCHS, END = 24, 14": "EPOCHS, END = 10, 8"},
    "06_delivery": {"EPOCHS = 12": "EPOCHS = 2", "evaluations=20": "evaluations=3", "0.8, 0.9, 0.95]": "0.9]"},
    "05_dynamic_sparse_training": {"EPOCHS, EVERY = 0.98, 30, 10": "EPOCHS, EVERY = 0.98, 12, 10"},
}


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all notebooks, which imports torch once."""
    manager = pytest.importorskip("jupyter_client").KernelManager(kernel_name="python3")
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_notebook(name, kernel):
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for long, short in SHORTER.get(name, {}).items():
        assert sum(long in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FEW_DIGITS))
    resources = {"metadata": {"path": str(path.parent)}}
    runner = client.NotebookClient(notebook, km=kernel, timeout=300, resources=resources)
    runner.execute(cleanup_kc=False)
    runner.kc.stop_channels()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    told = "".join(output.get("text", "") for output in outputs)
    assert told.count("equal to the bit") == len(re.findall("equal to the bit: *True", told)), "a resumed run differs"
    assert "RunWarning" not in told and "SparsityWarning" not in told, told


@pytest.mark.filterwarnings("ignore", "error::ignite_prune.handlers.RunWarning", "error::ignite_prune.SparsityWarning")
def test_readme_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) >= 6

    def build():
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    model = build()
    space = {
        "torch": torch,
        "nn": nn,
        "build": build,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "loss_fn": nn.functional.cross_entropy,
        "loader": [(torch.randn(8, 64), torch.randint(10, (8,))) for _ in range(4)],
    }
    for block in blocks:
        exec(compile(block, "README.md", "exec"), space)


def test_one_shot_language_model_end_to_end(tmp_path):
    few = ("--quick", "--steps", 2, "--more", 2, "--sequences", 8, "--pattern", "2:4")
    told = run_example("one_shot_language_model", *few, "--checkpoint", "--output", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"dense.safetensors", "sparse.safetensors"}
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in told.splitlines() if "│" in line}
    assert rows["SparseGPT"] == rows["SparseGPT, through files"] and rows["SparseGPT, fine-tuned"][0].strip() == "0.500"
    told = run_example("one_shot_language_model", "--sparsity", "1.5", "--output", tmp_path, ok=False)
    assert "Traceback" not in told and "--sparsity" in told and "1.5" in told
