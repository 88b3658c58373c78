"""ScoreSource: the scores of one tensor, as a whole or in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

PIECE = 1 << 18
"""Number of entries of a piece: some temporaries of it fit in a core's cache."""


class ScoreSource:
    """Returns scores that are computed by a function, always the same ones.

    A subclass may compute pieces and samples without computing the whole.

    Args:
        whole: returns all scores, any shape.

    Example:
        >>> source = ScoreSource(lambda: torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> source.every(2), [piece.tolist() for piece in source.pieces()]
        (tensor([1., 3.]), [[1.0, 2.0, 3.0, 4.0]])
    """

    def __init__(self, whole: Callable[[], Tensor]) -> None:
        self._whole = whole

    def __call__(self) -> Tensor:
        """Return all scores."""
        return self._whole()

    def pieces(self) -> Iterator[Tensor]:
        """Yield all scores, 1-D, in order of their flat indices; each piece is valid until the next one."""
        flat = self().reshape(-1)
        yield from torch.split(flat, PIECE if flat.is_cpu else max(flat.numel(), 1))

    def every(self, stride: int) -> Tensor:
        """Return the scores at every ``stride``-th flat index, 1-D."""
        return self().reshape(-1)[::stride]

    def empty(self) -> Tensor:
        """Return an uninitialised bool tensor of the scores' shape, contiguous."""
        whole = self()
        return torch.empty(whole.shape, dtype=torch.bool, device=whole.device)


class EntryScores(ScoreSource):
    """One score for each entry of a parameter.

    Args:
        whole: returns all scores.
        parameter: the parameter, detached.
        of_part: returns the scores of a part of the parameter (1-D, like its scores); None if they cannot be computed
            in parts.
    """

    def __init__(
        self, whole: Callable[[], Tensor], parameter: Tensor, of_part: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__(whole)
        self._parameter, self._of_part = parameter, of_part

    def pieces(self) -> Iterator[Tensor]:
        if self._of_part is None:
            yield from super().pieces()
        else:
            yield from map(self._of_part, _parts(self._parameter))

    def every(self, stride: int) -> Tensor:
        if self._of_part is None:
            return super().every(stride)
        if self._parameter.is_contiguous():
            return self._of_part(self._parameter.view(-1)[::stride])
        start, found = 0, []
        for part in _parts(self._parameter):
            found.append(part[-start % stride :: stride])
            start += len(part)
        return self._of_part(torch.cat(found))

    def empty(self) -> Tensor:
        return torch.empty(self._parameter.shape, dtype=torch.bool, device=self._parameter.device)


class UnitScores(ScoreSource):
    """One score for each unit of a parameter; computed once.

    Args:
        whole: returns all scores.
        parameter: the parameter, detached.
        alive: returns units of entries, bool, see :meth:`.Pattern.alive`.
    """

    def __init__(self, whole: Callable[[], Tensor], parameter: Tensor, alive: Callable[[Tensor], Tensor]) -> None:
        super().__init__(whole)
        self._parameter, self._alive = parameter, alive
        self._found: Tensor | None = None

    def __call__(self) -> Tensor:
        if self._found is None:
            self._found = self._whole()
        return self._found

    def empty(self) -> Tensor:
        if self._found is not None:
            return super().empty()
        shape = self._alive(torch.empty(self._parameter.shape, dtype=torch.bool, device="meta")).shape
        return torch.empty(shape, dtype=torch.bool, device=self._parameter.device)


def _parts(parameter: Tensor) -> Iterator[Tensor]:
    """Yield a parameter in pieces, 1-D, in order of their flat indices."""
    if parameter.is_contiguous():
        yield from torch.split(parameter.view(-1), PIECE)
    else:
        rows = max(PIECE * len(parameter) // max(parameter.numel(), 1), 1)
        yield from (part.reshape(-1) for part in torch.split(parameter, rows))


def source_of(scores: Callable[[], Tensor]) -> ScoreSource:
    """Return scores as a source; a function is called for all of them at once."""
    return scores if isinstance(scores, ScoreSource) else ScoreSource(scores)


def stated(piece: object, attribute: str, method: str) -> bool:
    """Return what is said about a method by the class that defines it; what a derived class overrides is not covered.

    Example:
        >>> class Double:
        ...     pointwise = True
        ...     def __call__(self, values): return 2 * values
        >>> class Sum(Double):
        ...     def __call__(self, values): return values.sum()
        >>> stated(Double(), "pointwise", "__call__"), stated(Sum(), "pointwise", "__call__")
        (True, False)
    """
    defining = next(kind for kind in type(piece).__mro__ if method in vars(kind))
    return bool(vars(defining).get(attribute, False))
