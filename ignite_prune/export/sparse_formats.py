"""The sparse formats that fit a weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_BLOCKS = ((32, 32), (16, 16), (8, 8), (4, 4))
_FILLED = 0.6  # of the entries in kept blocks; emptier ones multiply too many zeros


def formats_for(weight: Tensor, formats: Sequence[str], refusals: list[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield formats and blocks that may pay for a weight; append to ``refusals`` why others do not."""
    if "csr" in formats:
        yield "csr", (1, 1)
    if "bsr" in formats:
        blocks = [block for block in _BLOCKS if _filled(weight, block) >= _FILLED]
        yield from (("bsr", block) for block in blocks[:2])
        if not blocks:
            refusals.append("bsr: no square blocks of 4 to 32 hold the weights")
    if "semi_structured" in formats:
        refusal = _semi_structured(weight)
        if refusal:
            refusals.append(f"semi_structured: {refusal}")
        else:
            yield "semi_structured", (1, 1)


def _filled(weight: Tensor, block: tuple[int, int]) -> float:
    """Return how much of the kept blocks is not zero; 0 if blocks do not divide the weight."""
    rows, columns = block
    if weight.shape[0] % rows or weight.shape[1] % columns:
        return 0.0
    counts = weight.ne(0).view(weight.shape[0] // rows, rows, -1, columns).sum((1, 3))
    kept = int(counts.count_nonzero()) * rows * columns
    return int(counts.sum()) / kept if kept else 0.0


def _semi_structured(weight: Tensor) -> str:
    """Return why a weight cannot be multiplied in 2:4 form; empty if it can."""
    if weight.device.type != "cuda":
        return f"2:4 kernels need CUDA, and the weight is on {weight.device}"
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"2:4 kernels need float16 or bfloat16, and the weight is {weight.dtype}"
    if weight.shape[0] % 32 or weight.shape[1] % 64:
        return f"2:4 kernels need a shape divisible by (32, 64), and the weight's is {tuple(weight.shape)}"
    if bool((weight.view(len(weight), -1, 4).count_nonzero(2) > 2).any()):
        along = weight.t().reshape(-1, 4) if weight.shape[0] % 4 == 0 else None
        wrong = along is not None and not bool((along.count_nonzero(1) > 2).any())
        return "it is 2:4 along the outputs; prune with NofM(2, 4, dim=1)" if wrong else "it is not 2:4 sparse"
    return ""
