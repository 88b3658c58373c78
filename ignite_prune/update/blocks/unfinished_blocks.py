"""The error of a pruning that ended between two blocks."""

from __future__ import annotations

from collections.abc import Sequence


class UnfinishedBlocks(RuntimeError, ValueError):
    """Pruning failed at a block, after others were pruned; the cause is the error's ``__cause__``.

    Args:
        text: what happened.
        done: the blocks that are pruned; the others are as they were.

    Attributes:
        done: the blocks that are pruned.
    """

    def __init__(self, text: str, done: Sequence[str]) -> None:
        super().__init__(text)
        self.done = tuple(done)


def progress_text(name: str, done: Sequence[str]) -> str:
    """Return the start of an error message: at which block pruning ended, and which blocks are pruned.

    Args:
        name: of the block at which pruning ended.
        done: names of the pruned blocks, in order; of more than four the first two and the last one are written.
    """
    shown = ", ".join(map(repr, done if len(done) <= 4 else [*done[:2], "...", done[-1]]))
    return f"Pruning ended at block {name!r}: {len(done)} blocks are pruned ({shown}); this one and the rest are not"
