"""Extra peak memory of one update, reported by the kernel for a separate process.

Run as a script, it is that process: it prunes once and prints the extra bytes.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ignite_prune import PruneHandler
from nets import MATRICES, SIZE, Stack
from rows import Missing, Row, Settings

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(settings: Settings) -> Iterator[Row | Missing]:
    what = "extra peak memory of one update, new masks included"
    if settings.device.type == "cpu" and not sys.platform.startswith("linux"):
        yield Missing(what, "needs Linux")
        return
    for matrices, target in ((MATRICES, {"at_most": 0.6}), (1, {})):
        name = what if target else "  of a single matrix with as many weights"
        command = [sys.executable, __file__, str(settings.device), str(matrices), str(torch.get_num_threads())]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            yield Missing(name, f"{answer.stderr.strip().splitlines()[-1]}")
            continue
        extra, weights = map(int, answer.stdout.split())
        yield Row(
            name, extra / weights, "× weights", note=f"{extra / 2**20:.0f} MiB on {weights / 2**20:.0f}", **target
        )


def _main(device: torch.device, matrices: int, threads: int) -> None:
    torch.set_num_threads(threads)
    _update(torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(2)]).to(device), device)  # loads libraries
    if matrices == 1:
        model: torch.nn.Module = torch.nn.utils.skip_init(
            torch.nn.Linear, SIZE, MATRICES * SIZE, bias=False, device=device
        )
        torch.nn.init.normal_(model.weight)
    else:
        stack = Stack(matrices, device)
        model = stack.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print(_update(model, device), weights)


def _update(model: torch.nn.Module, device: torch.device) -> int:
    """Return the peak extra bytes of the update."""
    pruner = PruneHandler(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        pruner.step(0.9)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # otherwise freed but resident memory would be reused without being counted
    before = _resident("VmRSS")
    _RESET.write_text("5")  # resets the peak
    pruner.step(0.9)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _main(torch.device(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
