"""Outlier-weighed layerwise sparsity: layers with more outliers stay denser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ignite_prune._utils.sparsity import kept
from ignite_prune.allocation.base import Allocation, Layer, Pool


@dataclass(frozen=True)
class OWL(Allocation):
    r"""Layer sparsities within ``spread`` of the target, lower where more scores are outliers.

    A layer's outlier ratio :math:`D_l` is the fraction of its living units whose score exceeds ``threshold`` times
    their mean. Its sparsity is :math:`S_l = S - c\,(D_l - \bar D)`: :math:`\bar D` is the mean over units, so that the
    whole has the sparsity :math:`S`, and c makes the largest deviation ``spread``. (The published program has the
    lowest and the highest :math:`S_l` differ by twice the spread, which leaves the paper's interval where the ratios
    lie askew.)

    Whole numbers are rounded by largest remainder and add up exactly. A layer that cannot have so many, because it is
    full or fewer of its units are left, passes them on to the others. Where the target plus ``spread`` reaches 1 the
    layer with the fewest outliers may be emptied: use a smaller spread there. Meant for transformers with
    ``saliency.Wanda()``.

    Args:
        threshold: multiples of the mean score that make an outlier, above 0; the paper's best are 3 to 10.
        spread: the largest deviation of a layer's sparsity from the target, in [0, 1]; 0 is uniform.

    Raises:
        ValueError: ``threshold`` or ``spread`` out of range; or a score is negative, where a mean says nothing.

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
            if not 0 <= value <= top or math.isinf(value) or (name == "threshold" and value == 0):
                within = "above 0 and finite" if name == "threshold" else "in [0, 1]"
                raise ValueError(f"Argument {name} should be {within}, but given {value!r}")

    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        units = [layer.units for layer in layers]
        ratios = [self._outliers(layer) for layer in layers]
        total = max(sum(units), 1)
        mean = sum(ratio * n for ratio, n in zip(ratios, units)) / total
        most = max((abs(ratio - mean) for ratio in ratios), default=0.0)
        scale = self.spread / most if most > 1e-12 else 0.0  # below is rounding alone
        keep = kept(sum(units), sparsity)
        wishes = [n * (keep / total + scale * (ratio - mean)) for ratio, n in zip(ratios, units)]
        counts = _fill(keep, wishes, units, [layer.living for layer in layers])
        return [Pool((layer,), count) for layer, count in zip(layers, counts)]

    def _outliers(self, layer: Layer) -> float:
        scores = layer.scores()
        living = (scores if layer.alive is None else scores[layer.alive]).flatten()
        if living.numel() == 0:  # all pruned; or a trial of the target alone, before there are scores
            return 0.0
        living = living.float() if living.itemsize < 4 else living
        if bool((living < 0).any()):
            raise ValueError(f"{self} needs scores of at least 0, but those of {layer.name!r} are negative in places")
        return int((living > living.mean() * self.threshold).count_nonzero()) / living.numel()


def _fill(total: int, wishes: Sequence[float], sizes: Sequence[int], caps: Sequence[int]) -> list[int]:
    """Return whole numbers in [0, cap] that add up to ``total``, as near to ``wishes`` as can be.

    All densities are moved alike until the clipped wishes add up; then the largest remainders are rounded up.

    Example:
        >>> _fill(10, [4.5, 4.5, 1.0], [10, 10, 10], [10, 3, 10])
        [5, 3, 2]
    """
    total = min(total, sum(caps))

    def clipped(move: float) -> list[float]:
        return [min(max(wish + move * size, 0.0), float(cap)) for wish, size, cap in zip(wishes, sizes, caps)]

    low, high = -3.0, 3.0  # wishes lie within two sizes of any cap
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
    while short < 0:  # rounding noise of very many layers
        i = max(range(len(counts)), key=lambda i: counts[i] - quotas[i] if counts[i] else -math.inf)
        counts[i], short = counts[i] - 1, short + 1
    return counts
