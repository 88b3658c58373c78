"""OWL: outlier-weighed layerwise sparsity, lower for layers with more outliers."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ignite_prune._utils.sparsity import kept
from ignite_prune.allocation.base import Allocation, Layer, Pool


@dataclass(frozen=True)
class OWL(Allocation):
    r"""Layer sparsities within ``spread`` of the target, lower for layers with more outlying scores.

    The outlier ratio :math:`D_l` of a layer is the fraction of its alive units whose score exceeds ``threshold`` times
    their mean. Its sparsity is :math:`S_l = S - c\,(D_l - \bar D)`, where :math:`\bar D` is the mean over units, so
    that the total sparsity is :math:`S`, and c makes the largest deviation equal to ``spread``. (In the published code
    the lowest and highest :math:`S_l` differ by twice the spread, which leaves the paper's interval if the ratios are
    asymmetric.)

    Counts are rounded by largest remainder and add up exactly. Units that a layer cannot keep, because it is full or
    has fewer left, are given to the others. If the target plus ``spread`` reaches 1, the layer with the fewest outliers
    may become empty: use a smaller spread then. Intended for transformers with ``saliency.Wanda()``.

    Args:
        threshold: multiple of the mean score from which a unit is an outlier, above 0; the paper's best are 3 to 10.
        spread: largest deviation of a layer's sparsity from the target, in [0, 1]; 0 is uniform.

    Raises:
        ValueError: ``threshold`` or ``spread`` is out of range; or (from an update) a score is negative.

    Example:
        >>> import torch
        >>> a, b = torch.ones(100), torch.ones(100)
        >>> a[:5] = 100.0
        >>> layers = [Layer(n, (100,), 100, lambda s=s: s, None, 100) for n, s in (("a", a), ("b", b))]
        >>> [pool.keep for pool in OWL().divide(layers, 0.5)]
        [58, 42]

    References:
        Yin et al., "Outlier weighed layerwise sparsity (OWL)", 2024, arXiv 2310.05175.
    """

    threshold: float = 5.0
    spread: float = 0.08

    def __post_init__(self) -> None:
        for name, top in (("threshold", math.inf), ("spread", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"Argument {name} should be a number, but given {value!r}")
            if not 0 <= value <= top or value > sys.float_info.max or (name == "threshold" and value == 0):
                within = "above 0 and finite" if name == "threshold" else "in [0, 1]"
                raise ValueError(f"Argument {name} should be {within}, but given {value!r}")

    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        ratios = [self.outliers(layer) for layer in layers]
        counts = self.counts(ratios, [layer.units for layer in layers], [layer.living for layer in layers], sparsity)
        return [Pool((layer,), count) for layer, count in zip(layers, counts)]

    def counts(
        self, ratios: Sequence[float], units: Sequence[int], living: Sequence[int], sparsity: float
    ) -> list[int]:
        """Return how many units each layer keeps.

        Args:
            ratios: outlier ratio of each layer, see :meth:`outliers`.
            units: the number of each layer's units.
            living: the number of those that are not pruned yet.
            sparsity: of all units together.
        """
        total = max(sum(units), 1)
        mean = sum(ratio * n for ratio, n in zip(ratios, units)) / total
        most = max((abs(ratio - mean) for ratio in ratios), default=0.0)
        scale = self.spread / most if most > 1e-12 else 0.0  # smaller deviations are rounding errors
        keep = kept(sum(units), sparsity)
        wanted = [n * (keep / total + scale * (ratio - mean)) for ratio, n in zip(ratios, units)]
        return _fill(keep, wanted, units, living)

    def outliers(self, layer: Layer) -> float:
        """Return the fraction of a layer's alive units whose score exceeds ``threshold`` times their mean.

        Raises:
            ValueError: a score is negative.
        """
        scores = layer.scores()
        living = (scores if layer.alive is None else scores[layer.alive]).flatten()
        if living.numel() == 0:  # all are pruned; or the target is checked before there are scores
            return 0.0
        living = living.float() if living.itemsize < 4 else living
        if bool((living < 0).any()):
            raise ValueError(f"{self} needs scores of at least 0, but some of {layer.name!r} are negative")
        return int((living > living.mean() * self.threshold).count_nonzero()) / living.numel()


def _fill(total: int, wanted: Sequence[float], sizes: Sequence[int], caps: Sequence[int]) -> list[int]:
    """Return whole numbers in [0, cap] that add up to ``total`` and are close to ``wanted``.

    All densities are shifted by the same amount until the clipped values add up; then the largest remainders are
    rounded up.

    Example:
        >>> _fill(10, [4.5, 4.5, 1.0], [10, 10, 10], [10, 3, 10])
        [5, 3, 2]
    """
    total = min(total, sum(caps))

    def clipped(shift: float) -> list[float]:
        return [min(max(each + shift * size, 0.0), float(cap)) for each, size, cap in zip(wanted, sizes, caps)]

    low, high = -3.0, 3.0  # wanted counts are within two sizes of any cap
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(clipped(middle)) < total else (low, middle)
    quotas = clipped(0.0) if abs(sum(clipped(0.0)) - total) < 1e-6 else clipped(high)
    counts = [min(math.floor(quota + 1e-9), cap) for quota, cap in zip(quotas, caps)]
    order = sorted(range(len(caps)), key=lambda i: counts[i] - quotas[i])
    short = total - sum(counts)
    while short > 0:
        for i in order:
            if short > 0 and counts[i] < caps[i]:
                counts[i], short = counts[i] + 1, short - 1
    while short < 0:  # accumulated rounding errors of very many layers
        i = max(range(len(counts)), key=lambda i: counts[i] - quotas[i] if counts[i] else -math.inf)
        counts[i], short = counts[i] - 1, short + 1
    return counts
