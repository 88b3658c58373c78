"""ShownBatches: a progress bar over calibration data."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any


class ShownBatches:
    """Batches that can be iterated over as often as the data itself, with a progress bar on stderr each time.

    Args:
        data: the batches.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        from tqdm.auto import tqdm

        total = len(self._data) if isinstance(self._data, Sized) else None
        yield from tqdm(self._data, desc="calibration", total=total, file=sys.stderr, leave=False)
