"""Atomic changes: carried out completely or not at all, whatever interrupts them (Ctrl-C, an error).

Everything that may fail or take memory is computed first, while nothing has changed. The remaining step is a commit: it
only assigns computed values and writes in place, and can be repeated from its start. A commit that is cut short is
repeated to its end before the exception goes on, so it is always done as a whole.
"""

from __future__ import annotations

from collections.abc import Callable


def to_the_end(commit: Callable[[], object]) -> None:
    """Run a commit that may be repeated; if it is cut short, run it again to its end and raise what cut it.

    Example:
        >>> done = []
        >>> def commit():
        ...     done.append("begun")
        ...     if len(done) == 1:
        ...         raise KeyboardInterrupt
        ...     done.append("ended")
        >>> try:
        ...     to_the_end(commit)
        ... except KeyboardInterrupt:
        ...     done
        ['begun', 'begun', 'ended']
    """
    try:
        commit()
    except BaseException:
        commit()
        raise
