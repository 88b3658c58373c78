"""Pruning block by block compared with gathering all at once, 12 blocks of width 768; and its peak memory.

Run as a script, it is the process whose peak memory is measured: it prunes once and prints bytes.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from clock import Contestant, race
from ignite_prune import allocation, prune_blocks, prune_model, repair, saliency
from rows import Missing, Row, Settings, ratio_row

WIDTH, LENGTH, SEQUENCES = 768, 128, 16
METHODS: dict[str, dict[str, Any]] = {
    "Wanda": {"saliency": saliency.Wanda()},
    "SparseGPT": {"saliency": saliency.SparseGPT(), "repair": repair.SparseGPT()},
}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Block(nn.Module):
    """A transformer's block in the shape of GPT-2's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = (each.unflatten(-1, (12, -1)).transpose(1, 2) for each in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.mlp_norm(x))))


def _model(blocks: int, device: torch.device) -> nn.Sequential:
    model = nn.Sequential(nn.Embedding(1000, WIDTH), nn.Sequential(*(Block() for _ in range(blocks))))
    return model.to(device).eval()


def _data(sequences: int, device: torch.device) -> list[Tensor]:
    return [torch.randint(1000, (1, LENGTH), device=device) for _ in range(sequences)]


def speed(settings: Settings) -> Iterator[Row]:
    """Time both ways of pruning 85 M weights by 16 sequences of 128 tokens."""
    device = settings.device
    model, data = _model(12, device), _data(SEQUENCES, device)
    dense = [parameter.detach().clone() for parameter in model.parameters()]

    def restore() -> None:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), dense):
                parameter.copy_(value)

    for name, method in METHODS.items():
        given = {"data": data, "sparsity": 0.5, **method}

        def at_once(given: dict[str, Any] = given) -> None:
            prune_model(model, allocation=allocation.Uniform(), **given)

        ways = {
            "at once": Contestant(at_once, restore),
            "blocks": Contestant(lambda given=given: prune_blocks(model, "1.*", **given), restore),
            "dense inputs": Contestant(
                lambda given=given: prune_blocks(model, "1.*", sequential=False, **given), restore
            ),
        }
        times = race(ways, min(settings.rounds, 3), device)
        note = f"at once {times.median('at once'):.1f} s"
        what = f"prune_blocks with {name}, 12 blocks of width {WIDTH}, compared with prune_model"
        yield ratio_row(what, times.ratios("blocks", "at once"), "×", note=note, at_most=1.2)
        yield ratio_row("  sequential=False", times.ratios("dense inputs", "at once"), "×")


def memory(settings: Settings) -> Iterator[Row | Missing]:
    """Peak memory of a pruning, for separate processes."""
    for name in METHODS:
        what = f"peak memory of prune_blocks with {name}: over one block, its evidence and the activations"
        if settings.device.type != "cpu" or not sys.platform.startswith("linux"):
            yield Missing(what, "needs Linux and the CPU")
            continue
        command = [sys.executable, __file__, name, str(torch.get_num_threads())]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            yield Missing(what, answer.stderr.strip().splitlines()[-1])
            continue
        peak, block, evidence, activations = (int(each) / 2**20 for each in answer.stdout.split())
        note = f"{peak:.0f} MiB; block {block:.0f}, evidence {evidence:.0f}, activations {activations:.0f}"
        yield Row(what, peak / (block + evidence + activations), "×", note=note, at_most=1.2)


def blocks(settings: Settings) -> Iterator[Row | Missing]:
    """Return all rows."""
    yield from speed(settings)
    yield from memory(settings)


def _main(name: str, sequences: int = 256) -> None:
    device = torch.device("cpu")
    given = {"sparsity": 0.5, **METHODS[name]}
    prune_blocks(_model(1, device), "1.*", data=_data(1, device), **given)  # loads libraries
    model, data = _model(2, device), _data(sequences, device)
    block = sum(p.numel() * p.element_size() for p in model[1][0].parameters())
    evidence = 4 * (3 * WIDTH**2 + (4 * WIDTH) ** 2) if name == "SparseGPT" else 4 * 3 * 7 * WIDTH
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    _RESET.write_text("5")
    prune_blocks(model, "1.*", data=data, **given)
    print(_resident("VmHWM") - before + block, block, evidence, 4 * sequences * LENGTH * WIDTH)


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    _main(sys.argv[1])
