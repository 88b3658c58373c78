"""Checks of sparsities, and their rounding to whole units."""

from __future__ import annotations

from numbers import Real
from typing import Any, Protocol


class _Pattern(Protocol):
    @property
    def share(self) -> float:
        """The largest sparsity that the pattern reaches."""


def as_sparsity(value: Any, argument: str = "sparsity") -> float:
    """Return ``value`` as a float in [0, 1].

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is outside [0, 1], or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Argument {argument} should be a number in [0, 1], but given {value!r}")
    if not 0 <= value <= 1:  # type: ignore[operator]
        percent = f"; for {value} % write {float(value) / 100:g}" if 1 < value <= 100 else ""  # type: ignore[operator]
        raise ValueError(f"Argument {argument} should be in [0, 1], but given {value!r}{percent}")
    return float(value)


def as_unit_fraction(pattern: _Pattern, sparsity: float) -> float:
    """Return the fraction of units to prune for ``sparsity`` of the entries.

    Raises:
        ValueError: the pattern cannot reach ``sparsity``.
    """
    if sparsity > pattern.share + 1e-9:
        raise ValueError(
            f"{pattern} reaches at most a sparsity of {pattern.share:g}, but {sparsity:g} is asked for; "
            f"aim for {pattern.share:g}, where every group is done"
        )
    return min(sparsity / pattern.share, 1.0)


def kept(units: int, sparsity: float) -> int:
    """Return how many of ``units`` are kept at ``sparsity``; the pruned number is rounded half to even, as in torch.

    Example:
        >>> kept(5, 0.5), kept(7, 0.5)
        (3, 3)
    """
    return units - round(units * sparsity)
