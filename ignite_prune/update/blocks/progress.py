"""A bar with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ignite_prune._utils.extras import needed

Advance = Callable[[str], None]
"""Called after each pass of a batch, with what is being done."""


def check_progress(progress: bool) -> None:
    """Raise ImportError if a bar is asked for and tqdm is not installed."""
    if not isinstance(progress, bool):
        raise TypeError(f"Argument progress should be a bool, but given {progress!r}")
    if progress:
        needed("tqdm", "progress=True")


@contextmanager
def shown(progress: bool, total: int, done: int = 0) -> Iterator[Advance]:
    """Yield a function that moves the bar on by one pass of a batch.

    Args:
        progress: whether a bar is shown.
        total: number of passes of batches.
        done: how many of them an earlier run has done.
    """
    if not progress:
        yield lambda what: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=done, unit="batch", dynamic_ncols=True) as bar:

        def advance(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        yield advance
