"""What a new user runs first: the examples, their help and refusals, and the notebooks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def digits(*arguments, ok=True, example="digits"):
    command = [sys.executable, str(ROOT / "examples" / f"{example}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "110"}, check=False)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_digits_end_to_end(tmp_path):
    told = digits("--epochs", 4, "--output", tmp_path)
    assert "tensorboard --logdir" in told
    written = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert {".png", ".pt"} <= written and list(tmp_path.rglob("events.out.tfevents*"))
    assert "90.0" in told and "compression" in told.lower()


def test_help_and_refusals(tmp_path):
    told = digits("--help")
    for option in ("--sparsity", "--schedule", "--epochs", "--seed", "--resume", "--output"):
        assert option in told
    told = digits("--sparsity", "1.5", "--output", tmp_path, ok=False)
    assert "Traceback" not in told and "1.5" in told


def shrink_digits(*arguments, ok=True):
    return digits(*arguments, ok=ok, example="shrink_digits")


def test_shrink_digits_end_to_end(tmp_path):
    told = shrink_digits("--quick", "--epochs", 3, "--output", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "picture.png"}
    assert "445,386" in told and "112,106" in told and "equal to the bit" in told


def test_shrink_digits_help_and_refusals(tmp_path):
    told = shrink_digits("--help")
    for option in ("--sparsity", "--epochs", "--seed", "--output", "--quick"):
        assert option in told
    file = tmp_path / "file"
    file.touch()
    for option, value in (("--sparsity", "1.5"), ("--epochs", "2"), ("--seed", "-1"), ("--output", file)):
        told = shrink_digits(option, value, ok=False)
        assert "Traceback" not in told and option in told and str(value) in told


def lottery_ticket(*arguments, ok=True):
    return digits(*arguments, ok=ok, example="lottery_ticket")


def test_lottery_ticket_end_to_end(tmp_path):
    told = lottery_ticket("--quick", "--seeds", 1, "--epochs", 2, "--workers", 1, "--output", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"picture.png", "figures.csv"}
    assert "1.4%" in told and "too few seeds to tell" in told


def test_lottery_ticket_help_and_refusals(tmp_path):
    told = lottery_ticket("--help")
    for option in ("--seeds", "--epochs", "--lr", "--workers", "--output", "--quick"):
        assert option in told
    told = lottery_ticket("--seeds", "0", "--output", tmp_path, ok=False)
    assert "Traceback" not in told and "--seeds" in told and "0" in told


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_notebook(name):
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert not [cell for cell in notebook.cells if any(o.output_type == "error" for o in cell.get("outputs", []))]


def test_readme_code_runs():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 6
    setup = """
import tempfile, os, torch
from torch import nn
os.chdir(tempfile.mkdtemp())
torch.manual_seed(0)
def build():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
model = build()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loss_fn = nn.functional.cross_entropy
loader = [(torch.randn(8, 64), torch.randint(10, (8,))) for _ in range(4)]
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", setup + "\n".join(blocks)], check=True)
