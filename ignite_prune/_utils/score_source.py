"""ScoreSource: the scores of one tensor, as a whole or in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 1 << 18
"""Number of entries of a piece: some temporaries of it fit in a core's cache."""
_LEAST, _MOST = 1 << 12, 1 << 18  # bounds of the size of a sample


@dataclass(frozen=True)
class ScoreSource:
    """Returns scores that are computed by a function, always the same ones.

    A subclass may compute pieces and samples without computing the whole.

    Args:
        whole: returns all scores.
        shape: of the scores.
        device: of the scores.

    Example:
        >>> source = source_of(lambda: torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> source.every(2), [piece.tolist() for piece in source.pieces()]
        (tensor([1., 3.]), [[1.0, 2.0, 3.0, 4.0]])
    """

    whole: Callable[[], Tensor]
    shape: torch.Size
    device: torch.device

    def __call__(self) -> Tensor:
        """Return all scores."""
        return self.whole()

    def pieces(self) -> Iterator[Tensor]:
        """Yield all scores, 1-D, in order of their flat indices; each piece is valid until the next one."""
        flat = self.whole().reshape(-1)
        yield from torch.split(flat, PIECE if flat.is_cpu else max(flat.numel(), 1))

    def every(self, stride: int) -> Tensor:
        """Return the scores at every ``stride``-th flat index, 1-D."""
        return self.whole().reshape(-1)[::stride].clone()  # a view would keep all scores in memory


@dataclass(frozen=True)
class EntryScores(ScoreSource):
    """One score for each entry of a parameter, which depends on the value of that entry alone.

    Args:
        parameter: the parameter, detached.
        of_part: returns the scores of a part of the parameter (1-D, like its scores).
    """

    parameter: Tensor
    of_part: Callable[[Tensor], Tensor]

    def pieces(self) -> Iterator[Tensor]:
        yield from map(self.of_part, _parts(self.parameter))

    def every(self, stride: int) -> Tensor:
        if self.parameter.is_contiguous():
            return self.of_part(self.parameter.view(-1)[::stride])
        start, found = 0, []
        for part in _parts(self.parameter):
            found.append(part[-start % stride :: stride])
            start += len(part)
        return self.of_part(torch.cat(found))


def _parts(parameter: Tensor) -> Iterator[Tensor]:
    """Yield a parameter in pieces, 1-D, in order of their flat indices."""
    if parameter.is_contiguous():
        yield from torch.split(parameter.view(-1), PIECE)
    else:
        rows = max(PIECE * len(parameter) // max(parameter.numel(), 1), 1)
        yield from (part.reshape(-1) for part in torch.split(parameter, rows))


def sample_stride(total: int) -> int:
    """Return the stride of a sample that balances the work on it and on the candidates that its bracket leaves.

    It is odd, which avoids aliasing with dimensions, as these are often powers of two.

    Args:
        total: number of scores that may be kept.
    """
    return total // min(max(total // 32, _LEAST), _MOST) | 1


def source_of(scores: Callable[[], Tensor]) -> ScoreSource:
    """Return scores as a source; a function is called for all of them at once."""
    if isinstance(scores, ScoreSource):
        return scores
    whole = scores()
    return ScoreSource(scores, whole.shape, whole.device)
