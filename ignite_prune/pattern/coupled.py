"""Coupled: the coupled units of a model's structure (dependency groups)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ignite_prune.pattern.base import Pattern, row_norms


@dataclass(frozen=True)
class Coupled(Pattern):
    r"""Coupled units of a :class:`~ignite_prune.structure.Structure`: channels, neurons or heads, in all their tensors.

    The score of a slice is the norm of its entry scores; the score of a unit combines its slices in all scored weights.
    Units of different groups differ in size: an attention head has thousands of entries, a neuron one row, so that
    their norms cannot be ranked together. Scores are divided by the mean over all units of the same kind: heads,
    neurons, channels of depthwise convolutions; groups whose scores do not overlap are of different kinds. For
    ``Global()`` they are also raised to the power that gives them the spread of the largest kind. The order of the
    units of a kind does not change.

    Args:
        norm: order of the norm of a slice, a number above 0 or ``math.inf``; None sums the scores, of any sign.
        combine: ``"mean"``, ``"sum"`` or ``"max"`` of the slices, or ``"first"``: only the weight that produces the
            unit.
        round_to: the number of kept units is rounded up to a multiple of it, in groups with at least as many units.
        at_least: minimum number of units that a group keeps.
        normalise: how scores of unlike units are made comparable: ``"kind"``, as above; ``"group"``, divided by the
            mean of each group; None: not at all, as network slimming does with ``saliency.BatchNormScale()``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> Coupled(combine="sum", round_to=8)
        Coupled(norm=2, combine='sum', round_to=8, at_least=1, normalise='kind')
    """

    norm: float | None = 2
    combine: Literal["mean", "sum", "max", "first"] = "mean"
    round_to: int = 1
    at_least: int = 1
    normalise: Literal["kind", "group"] | None = "kind"
    by_unit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.norm is not None and (
            isinstance(self.norm, bool) or not isinstance(self.norm, (int, float)) or not self.norm > 0
        ):
            raise ValueError(
                f"Argument norm should be a number above 0 (math.inf too) or None, but given {self.norm!r}"
            )
        if self.combine not in ("mean", "sum", "max", "first"):
            raise ValueError(f"Argument combine should be 'mean', 'sum', 'max' or 'first', but given {self.combine!r}")
        if self.normalise not in ("kind", "group", None):
            raise ValueError(f"Argument normalise should be 'kind', 'group' or None, but given {self.normalise!r}")
        for name in ("round_to", "at_least"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"Argument {name} should be an int of at least 1, but given {value!r}")

    def left(self, kept: int, size: int) -> int:
        """Return how many of ``size`` units a group keeps if ``kept`` are requested.

        Example:
            >>> Coupled(round_to=4).left(5, 16), Coupled(round_to=4).left(0, 3)
            (8, 1)
        """
        rounded = -(-kept // self.round_to) * self.round_to if size >= self.round_to else kept
        return min(size, max(rounded, self.at_least, self.round_to if size >= self.round_to else 1))

    def slices(self, scores: Tensor, dim: int) -> Tensor:
        """Return one score for each slice along a dimension, ``(size,)``, float64."""
        along = scores.movedim(dim, 0).reshape(scores.shape[dim], -1)
        return along.sum(1, dtype=torch.float64) if self.norm is None else row_norms(along, self.norm)

    def joined(self, slices: Tensor, units: Tensor, size: int) -> Tensor:
        """Return unit scores, ``(size,)``, from index scores; ``units`` holds the unit of each index, -1 for none."""
        in_group = units >= 0
        units, slices = units[in_group].to(slices.device), slices[in_group]
        found = slices.new_zeros(size)
        if self.norm is None:
            return found.index_add_(0, units, slices)
        if self.norm == torch.inf:
            return found.scatter_reduce_(0, units, slices, "amax")
        return found.index_add_(0, units, slices**self.norm) ** (1 / self.norm)

    def together(self, several: Sequence[Tensor]) -> Tensor:
        """Return unit scores from the scores of their slices in several weights."""
        stacked = torch.stack(list(several[:1] if self.combine == "first" else several))
        return {"mean": stacked.mean(0), "sum": stacked.sum(0), "max": stacked.amax(0), "first": stacked[0]}[
            self.combine
        ]

    def count(self, shape: Sequence[int]) -> int:
        """Return the number of unit scores of a weight: one per slice of dim 0."""
        return shape[0] if shape else 0

    def takes(self, scores: Sequence[int], shape: Sequence[int]) -> bool:
        """Return whether there is one score per slice of dim 0, or per run of equally many slices (a head)."""
        return len(scores) == 1 and bool(shape) and scores[0] > 0 and shape[0] % scores[0] == 0

    def group(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        raise TypeError("Coupled() needs a structure: PruneHandler(..., structure=trace(model, example_inputs))")

    alive = spread = group  # type: ignore[assignment]
