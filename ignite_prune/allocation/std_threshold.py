"""StdThreshold: Han's threshold, a multiple of each layer's standard deviation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ignite_prune._utils.sparsity import kept
from ignite_prune.allocation.base import Allocation, Layer, Pool, once


@dataclass(frozen=True)
class StdThreshold(Allocation):
    r"""Prunes units whose score is below :math:`q \cdot \mathrm{std}` of their layer, with one :math:`q` for all.

    With ``q=None`` the target sparsity is met exactly: units are ranked by score / std(layer) over all parameters
    (deepstruct's "distributed"). With a number, the threshold decides (Han's quality parameter, often 0.25 for LeNet)
    and the target is only an upper bound: use ``sparsity=1.0``, or omit it in ``prune_model``.

    Each update recomputes the deviation over the units that are left, so with a number every update prunes more. The
    deviation is :math:`\sqrt{\overline{s^2}}` over the scores of these units, which for magnitudes is the standard
    deviation of weights with mean 0.

    Args:
        q: the multiple of the deviation, a finite number of at least 0, or None.

    Raises:
        ValueError: ``q`` is negative or not finite.

    References:
        Han, Pool, Tran, Dally, "Learning both weights and connections", 2015, arXiv 1506.02626.
    """

    q: float | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.q, (int, float)) and not isinstance(self.q, bool)
        if self.q is not None and (not number or not 0 <= self.q < math.inf):
            raise ValueError(f"Argument q should be a finite number of at least 0 or None, but given {self.q!r}")
        object.__setattr__(self, "sets_own", self.q is not None)

    def divide(self, layers: Sequence[Layer], sparsity: float) -> list[Pool]:
        ranked = tuple(replace(layer, scores=_in_deviations(layer)) for layer in layers)
        total = sum(layer.units for layer in layers)
        keep = kept(total, sparsity)
        if self.q is not None:
            above = sum(int(_living(layer, layer.scores() >= self.q).sum()) for layer in ranked)
            keep = max(keep, above)
        return [Pool(ranked, keep)]


def _living(layer: Layer, values: Tensor) -> Tensor:
    return values if layer.alive is None else values & layer.alive


def _in_deviations(layer: Layer) -> Callable[[], Tensor]:
    def deviation() -> Tensor:
        left = layer.scores() if layer.alive is None else layer.scores()[layer.alive]
        return left.double().square().mean().sqrt().clamp(min=1e-300)

    cached = once(deviation)
    return lambda: layer.scores().double() / cached()
