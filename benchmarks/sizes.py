"""Size of a checkpoint and time of an import."""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
from collections.abc import Iterator

import torch

from nets import MATRICES, Stack
from rows import Row, Settings
from updates import Update

_IMPORT = """
import time
start = time.perf_counter()
import torch, ignite.engine, ignite.handlers
between = time.perf_counter()
import ignite_prune
print(between - start, time.perf_counter() - between)
"""


def checkpoint(settings: Settings) -> Iterator[Row]:
    stack = Stack(MATRICES, settings.device)
    update = Update(stack)
    update.before()
    update.work()
    file = io.BytesIO()
    torch.save(update.pruner.state_dict(), file)
    size, allowed = file.tell(), stack.numel // 8 + 4096
    note = f"{size:,} bytes, 1 bit per weight and {size - stack.numel // 8:,}"
    yield Row("checkpoint against 1 bit per weight + 4 KB", size / allowed, "×", at_most=1, note=note)


def imports(settings: Settings) -> Iterator[Row]:
    rounds = []
    for _ in range(1 + min(settings.rounds, 7)):
        answer = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
        rounds.append([1000 * float(seconds) for seconds in answer.stdout.split()])
    base, extra = (statistics.median(column) for column in zip(*rounds[1:]))
    note = f"importing torch and ignite takes {base:.0f} ms"
    yield Row("import ignite_prune after torch and ignite", extra, "ms", at_most=50, note=note)
