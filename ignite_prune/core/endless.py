"""Data without an end: refused if its type shows it, warned of while it is iterated over."""

from __future__ import annotations

import itertools
import math
import operator
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

_MANY, _LONG = 10_000, 60.0  # batches, seconds
_BOUNDED = "pass a list, a DataLoader or itertools.islice(data, number)"


def warned_if_endless(data: Any, iterator: Iterator[Any]) -> Iterator[Any]:
    """Yield from an iterator over ``data``, and warn once if there seems to be no end of it.

    Raises:
        ValueError: it is one of the endless iterators of ``itertools``.
    """
    length = _length(data)
    if isinstance(data, (itertools.cycle, itertools.count)) or (isinstance(data, itertools.repeat) and length is None):
        raise ValueError(f"Argument data never ends (itertools.{type(data).__name__}); {_BOUNDED}")
    began, limit = time.monotonic(), _MANY if length is None else max(_MANY, 2 * length)
    patience = _LONG if length is None else math.inf
    for number, batch in enumerate(iterator):
        took = time.monotonic() - began
        if number >= limit or took > patience:
            warnings.warn(
                f"Argument data has given {number:,} batches in {took:.0f} s, and its length is "
                f"{'unknown' if length is None else length}. If it never ends, this call never returns; {_BOUNDED}",
                stacklevel=2,
            )
            limit, patience = sys.maxsize, math.inf
        yield batch


def _length(data: Any) -> int | None:
    """Return the number of batches, None if it is unknown."""
    try:
        length = operator.length_hint(data, -1)
    except TypeError:  # of an endless itertools.repeat, or a loader of an IterableDataset
        return None
    return None if length < 0 else length
