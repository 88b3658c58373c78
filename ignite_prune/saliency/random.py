"""Random: uniform random scores, the control for every other criterion."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_seed
from ignite_prune._utils.shard import Part
from ignite_prune.saliency.base import Saliency

_PIECE = 1 << 20


@dataclass(frozen=True)
class Random(Saliency):
    """Independent uniform scores in [0, 1), the same on every device and rank for the same generator.

    The scores of a parameter depend on the generator and the parameter's name only, not on which other parameters are
    pruned. They are drawn on the CPU, so the mask does not depend on the device.

    Args:
        seed: seed of the scores; None: :meth:`draw` draws it.

    Raises:
        TypeError, ValueError: ``seed`` is neither None nor an int of 64 bits.
        RuntimeError: called before :meth:`draw`, which ``PruneHandler`` and ``prune_model`` call.

    Example:
        >>> import torch
        >>> scores = Random().draw(torch.Generator().manual_seed(0))
        >>> w = torch.ones(2, 2)
        >>> bool((scores("fc.weight", w) == scores("fc.weight", w)).all())
        True
    """

    seed: int | None = None
    randomised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.seed is not None:
            check_seed(self.seed)

    def draw(self, generator: torch.Generator) -> Random:
        high = 2**62
        return Random(int(torch.randint(high, (), generator=generator, device=generator.device, dtype=torch.int64)))

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        return torch.rand(parameter.shape, generator=self._generator(name)).to(parameter.device)

    def part(self, name: str, part: Part) -> Tensor:
        """Return a part of the scores of a whole parameter, which are drawn one piece after another."""
        found, generator, done = torch.empty(math.prod(part.size)), self._generator(name), 0
        rows = math.prod(part.shape[1:])  # pieces are whole slices of dim 0
        step = max(1, _PIECE // max(rows, 1))
        inner = Part(part.shape[1:], part.start[1:], part.size[1:])
        for first in range(0, part.shape[0] if part.shape else 0, step):
            count = min(step, part.shape[0] - first)
            drawn = torch.rand((count, *part.shape[1:]), generator=generator)
            low, high = max(part.start[0], first), min(part.start[0] + part.size[0], first + count)
            for row in range(low, high):
                piece = inner.of(drawn[row - first]).reshape(-1)
                found[done : done + piece.numel()] = piece
                done += piece.numel()
        return found.view(part.size)

    def _generator(self, name: str) -> torch.Generator:
        if self.seed is None:
            raise RuntimeError("Random should be drawn first: Random().draw(generator)")
        return torch.Generator().manual_seed(self.seed + zlib.crc32(name.encode()))
