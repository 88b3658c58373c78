"""Probes: a few pruned positions of each parameter, other ones at each reading."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ignite_prune.core.mask_store import MaskStore

_READ = 256
_DRAWN = 16 * _READ


@dataclass(eq=False)
class Probes:
    """Draws pruned positions with a generator of its own, so that the program's random numbers stay as they are.

    Args:
        masks: of the parameters; positions are drawn again when they have changed.

    Example:
        >>> mask = torch.tensor([True, False])
        >>> store = MaskStore({"weight": torch.nn.Parameter(torch.ones(2))}, {"weight": mask})
        >>> Probes(store)("weight", mask).unique()
        tensor([1])
    """

    masks: MaskStore
    _pools: dict[str, tuple[Tensor, int]] = field(default_factory=dict, init=False)  # and where the next reading begins
    _drawn_for: int = field(default=-1, init=False)  # which state of the masks
    _generator: torch.Generator = field(init=False)

    def __call__(self, name: str, mask: Tensor) -> Tensor:
        """Return flat positions where the mask of a parameter is False; none where that is rare.

        Positions on an accelerator are drawn once, as drawing waits for it.
        """
        if self._drawn_for != self.masks.changes:
            self._pools.clear()
            self._drawn_for, self._generator = self.masks.changes, torch.Generator().manual_seed(0)
        pool, start = self._pools.get(name, (None, 0))
        if pool is None or pool.device != mask.device or (start >= len(pool) and mask.is_cpu):
            drawn = torch.randint(max(mask.numel(), 1), (_DRAWN,), generator=self._generator).to(mask.device)
            pool = drawn[~mask.take(drawn)] if mask.numel() else drawn[:0]
            start = 0
        self._pools[name] = pool, start + _READ if start + _READ < len(pool) or mask.is_cpu else 0
        return pool[start : start + _READ]
