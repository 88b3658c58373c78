"""Fractions of active connections that updates drop, as functions of the progress of training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Any


class DropFraction(ABC):
    """A pure function from the progress of training, in [0, 1], to the fraction that an update drops."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Return the fraction at ``progress``, which is 0 at the start and 1 at the end of updates."""


@dataclass(frozen=True)
class ConstantDrop(DropFraction):
    """The same fraction at every update, as in SET.

    Args:
        fraction: the fraction, in (0, 1).

    Raises:
        TypeError: ``fraction`` is not a number.
        ValueError: ``fraction`` is outside (0, 1).
    """

    fraction: float

    def __post_init__(self) -> None:
        check_fraction("drop_fraction", self.fraction)

    def __call__(self, progress: float) -> float:
        return float(self.fraction)


@dataclass(frozen=True)
class CosineDrop(DropFraction):
    r"""A fraction that decreases along half a cosine: :math:`f = e + \frac{\alpha - e}{2}(1 + \cos \pi x)`.

    Args:
        fraction: α, the fraction at the start, in (0, 1).
        final: e, the fraction at the end, in [0, fraction].

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of its range.

    Example:
        >>> [round(CosineDrop(0.3)(x), 4) for x in (0, 0.5, 1)]
        [0.3, 0.15, 0.0]

    References:
        Evci et al., "Rigging the lottery", 2020, arXiv 1911.11134.
    """

    fraction: float
    final: float = 0.0

    def __post_init__(self) -> None:
        check_fraction("drop_fraction", self.fraction)
        if isinstance(self.final, bool) or not isinstance(self.final, Real):
            raise TypeError(f"Argument final should be a number, but given {self.final!r}")
        if not 0 <= self.final <= self.fraction:
            raise ValueError(f"Argument final should be in [0, fraction={self.fraction}], but given {self.final!r}")

    def __call__(self, progress: float) -> float:
        return self.final + (self.fraction - self.final) / 2 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def check_fraction(argument: str, value: Any) -> None:
    """Raise TypeError or ValueError unless ``value`` is a number in (0, 1); NaN is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Argument {argument} should be a number in (0, 1), but given {value!r}")
    if not 0 < value < 1:  # type: ignore[operator]
        percent = f"; for {value} % write {float(value) / 100:g}" if 1 < value < 100 else ""  # type: ignore[operator]
        raise ValueError(f"Argument {argument} should be in (0, 1), but given {value!r}{percent}")
