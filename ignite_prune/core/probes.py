"""Probes: a few pruned positions of each parameter, other ones at each reading."""

from __future__ import annotations

import torch
from torch import Tensor

_READ = 256
_DRAWN = 16 * _READ


class Probes:
    """Draws pruned positions with a generator of its own, so that the program's random numbers stay as they are.

    Example:
        >>> mask = torch.tensor([True, False])
        >>> Probes()("weight", mask).unique()
        tensor([1])
    """

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._pools: dict[str, tuple[Tensor, int]] = {}  # positions, and where the next reading begins

    def __call__(self, name: str, mask: Tensor) -> Tensor:
        """Return flat positions where the mask of a parameter is False; none where that is rare.

        Positions on an accelerator are drawn once, as drawing waits for it.
        """
        pool, start = self._pools.get(name, (None, 0))
        if pool is None or pool.device != mask.device or (start >= len(pool) and mask.is_cpu):
            drawn = torch.randint(max(mask.numel(), 1), (_DRAWN,), generator=self._generator).to(mask.device)
            pool = drawn[~mask.take(drawn)] if mask.numel() else drawn[:0]
            start = 0
        self._pools[name] = pool, start + _READ if start + _READ < len(pool) or mask.is_cpu else 0
        return pool[start : start + _READ]
