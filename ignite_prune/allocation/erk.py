"""ERK: Erdős–Rényi-Kernel densities, higher for small layers."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ignite_prune._utils.sparsity import kept
from ignite_prune.allocation.base import Allocation, Layer, Pool


@dataclass(frozen=True)
class ERK(Allocation):
    r"""Layer densities from shapes: :math:`d_l = \varepsilon \left(\sum_i n_i / \prod_i n_i\right)^{power}`.

    :math:`\varepsilon` is chosen to reach the total density; a layer that would exceed 1 is kept dense, and
    :math:`\varepsilon` is solved again for the others. Counts are the Sainte-Laguë apportionment of the total: they
    add up exactly, and no layer gets more units if the total decreases.

    Args:
        power: exponent of the ratio of sum to product; 1 is ERK, 0 is uniform.
        kernel: include the kernel's dimensions (ERK); without them it is the Erdős–Rényi density of SET.

    Raises:
        ValueError: ``power`` is negative or not finite.

    References:
        Evci, Gale, Menick, Castro, Elsen, "Rigging the lottery", 2020, arXiv 1911.11134;
        Mocanu et al., "Scalable training of artificial neural networks", 2018, arXiv 1707.04780.
    """

    power: float = 1.0
    kernel: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.power, bool) or not isinstance(self.power, (int, float)) or not 0 <= self.power < math.inf:
            raise ValueError(f"Argument power should be a finite number of at least 0, but given {self.power!r}")

    def _ratio(self, shape: Sequence[int]) -> float:
        dims = tuple(shape) if self.kernel else tuple(shape[:2])
        return float((sum(dims) / max(math.prod(dims), 1)) ** self.power)

    def densities(self, shapes: Sequence[Sequence[int]], density: float) -> list[float]:
        """Return the density of each layer, for layers of ``shapes`` with a total density of ``density``.

        Example:
            >>> [round(d, 5) for d in ERK().densities([(300, 784), (100, 300), (10, 100)], density=0.05)]
            [0.03848, 0.11133, 0.91851]
        """
        sizes = [math.prod(shape) for shape in shapes]
        return _capped([self._ratio(shape) for shape in shapes], sizes, density * sum(sizes))

    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        total = sum(layer.units for layer in layers)
        weights = [self._ratio(layer.shape) * layer.units for layer in layers]
        counts = apportion(kept(total, sparsity), weights, [layer.units for layer in layers])
        return [Pool((layer,), count) for layer, count in zip(layers, counts)]


def _capped(ratios: Sequence[float], sizes: Sequence[int], budget: float) -> list[float]:
    """Return ``ratios`` scaled to densities of at most 1 for which ``density * size`` sums to ``budget``."""
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(ratios)) if i not in dense]
        weight = sum(ratios[i] * sizes[i] for i in free)
        epsilon = (budget - sum(sizes[i] for i in dense)) / weight if weight else 0.0
        over = {i for i in free if epsilon * ratios[i] > 1}
        if not over:
            return [1.0 if i in dense else epsilon * ratios[i] for i in range(len(ratios))]
        dense.add(max(over, key=lambda i: ratios[i]))


def apportion(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Divide ``total`` seats in proportion to ``weights`` (Sainte-Laguë), each at most its cap.

    House-monotone: no share increases if the total decreases.

    Example:
        >>> apportion(10, [3.0, 1.0, 1.0], [4, 9, 9])
        [4, 3, 3]
    """
    ratios = [weight / cap if cap else 0.0 for weight, cap in zip(weights, caps)]
    quotas = [density * cap for density, cap in zip(_capped(ratios, caps, total), caps)]
    counts = [min(cap, max(0, math.floor(quota) - 1)) for quota, cap in zip(quotas, caps)]
    queue = [(-weights[i] / (counts[i] + 0.5), i) for i in range(len(caps)) if counts[i] < caps[i]]
    heapq.heapify(queue)
    for _ in range(total - sum(counts)):
        _, i = heapq.heappop(queue)
        counts[i] += 1
        if counts[i] < caps[i]:
            heapq.heappush(queue, (-weights[i] / (counts[i] + 0.5), i))
    return counts
