"""The example under torchrun, and its resumption on another number of processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp_language_model.py"
SMALL = ("--iterations", "2", "--width", "16", "--blocks", "1", "--batch", "6")


def run(*arguments, ranks=None):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    command = [sys.executable, "-W", "ignore", *launch, str(EXAMPLE), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_prunes_on_two_ranks_and_goes_on_on_one(tmp_path):
    told = run(*SMALL, "--epochs", 3, "--output", tmp_path, ranks=2)
    assert "epoch 3" in told and "90.0% sparse" in told
    assert all(int(number) <= 12 for number in re.findall(r"by (\d+) messages", told))
    assert {path.name for path in tmp_path.glob("epoch-*")} == {"epoch-001", "epoch-002", "epoch-003"}
    assert list(tmp_path.glob("events.out.tfevents*"))
    told = run(*SMALL, "--epochs", 4, "--output", tmp_path, "--resume")
    assert "epoch 4" in told and "epoch 3" not in told and "90.0% sparse" in told
