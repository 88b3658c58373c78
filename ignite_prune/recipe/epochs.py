"""Epochs: a duration in epochs, converted to iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Epochs:
    """A number of epochs, where an argument of a handler counts iterations: ``every: {epochs: 0.5}``.

    Args:
        epochs: above 0; fractions too.
    """

    epochs: float

    def iterations(self, length: int | None) -> int:
        """Return the nearest number of iterations, at least 1.

        Args:
            length: iterations of an epoch; None: not known.

        Raises:
            ValueError: the length is not known.
        """
        if length is None:
            raise ValueError(
                f"{{epochs: {self.epochs:g}}} needs the number of iterations of an epoch: attach(..., loader=), or "
                "steps_per_epoch="
            )
        return max(1, round(self.epochs * length))


def read_count(value: Any) -> Any:
    """Return a whole number, None, or :class:`Epochs` from ``{epochs: 0.5}``."""
    if value is None or type(value) is int or isinstance(value, Epochs):
        return value
    if isinstance(value, Mapping) and set(value) == {"epochs"}:
        epochs = value["epochs"]
        if isinstance(epochs, (int, float)) and not isinstance(epochs, bool) and 0 < epochs < math.inf:
            return Epochs(epochs)
    raise ValueError("should be a whole number, or {epochs: NUMBER} above 0")
