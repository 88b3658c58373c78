"""Global: one ranking over all parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ignite_prune._utils.sparsity import kept
from ignite_prune.allocation.base import Allocation, Layer, Pool


@dataclass(frozen=True)
class Global(Allocation):
    """Prunes the units of least score over all parameters; each unit counts one.

    The best allocation for most trained networks up to about 90 % sparsity, but it can empty a layer: set a floor, or
    use :class:`LAMP` or :class:`ERK`.

    Args:
        min_density: fraction of its units that every parameter keeps at least.
        max_sparsity: largest sparsity of a parameter; equivalent to ``min_density = 1 - max_sparsity``.

    Raises:
        ValueError: a bound is outside [0, 1]; or (from an update) the floors do not allow the target.

    Example:
        >>> layers = [Layer("a", (10,), 10, None, None, 10), Layer("b", (30,), 30, None, None, 30)]
        >>> pool, = Global(min_density=0.05).divide(layers, 0.9)
        >>> pool.keep, pool.floors
        (4, (1, 2))
    """

    min_density: float = 0.0
    max_sparsity: float = 1.0

    def __post_init__(self) -> None:
        for name in ("min_density", "max_sparsity"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"Argument {name} should be a number in [0, 1], but given {value!r}")

    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        total = sum(layer.units for layer in layers)
        floors = tuple(self._floor(layer.units) for layer in layers)
        keep = kept(total, sparsity)
        if sum(floors) > keep:
            raise ValueError(
                f"{self} keeps at least {sum(floors)} of {total} units, but a sparsity of {sparsity:g} leaves {keep}; "
                "lower min_density (or raise max_sparsity), or aim lower"
            )
        return [Pool(tuple(layers), keep, floors)]

    def _floor(self, units: int) -> int:
        # The tolerance keeps 0.07 * 100 = 7.000000000000001 from becoming 8.
        return max(math.ceil(units * self.min_density - 1e-9), units - math.floor(units * self.max_sparsity + 1e-9))
