"""A parameter's scores, checked, and asked for no more often than is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ignite_prune.groups import Group
from ignite_prune.masks import MaskStore
from ignite_prune.pattern import Pattern
from ignite_prune.saliency import NonFiniteSaliency, Saliency

Average = Callable[[Tensor], Tensor]
"""Takes this rank's scores and returns the mean over all ranks'."""


def scorers(group: Group, masks: MaskStore, average: Average | None = None) -> dict[str, Scorer]:
    """Return a scorer for each parameter of a group, whose randomness has been drawn."""
    return {
        name: Scorer(name, masks.parameters[name], group["saliency"], group["pattern"], average)
        for name in group["params"]
    }


class Scorer:
    """One parameter's scores, checked: held where they depend on data, computed anew where that is cheap and pure.

    Args:
        name: the parameter's name.
        parameter: the parameter, any shape.
        saliency: the formula.
        pattern: tells whether one score a unit will do.
        average: makes data-dependent scores the same on every rank.
    """

    def __init__(
        self, name: str, parameter: Tensor, saliency: Saliency, pattern: Pattern, average: Average | None = None
    ) -> None:
        self.name = name
        self.shape = tuple(parameter.shape)
        self._parameter = parameter
        self._saliency = saliency
        self._pattern = pattern
        self._average = average
        self._held: Tensor | None = None
        self._checked = False

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Return the scores, float32 or float64, of the parameter's shape or 1-D with one a unit."""
        if self._held is not None:
            return self._held
        scores = self._saliency(self.name, self._parameter)
        if not self._checked:
            self._check_form(scores)
        if scores.dtype not in (torch.float32, torch.float64):
            scores = scores.float() if scores.dtype.itemsize < 4 and scores.is_floating_point() else scores.double()
        if self._saliency.data_dependent:
            scores = scores.to(self._parameter.device)
            self._held = scores = scores.clone() if self._average is None else self._average(scores)
        if not self._checked:
            self._check_finite(scores)
            self._checked = True
        return scores

    @property
    def held(self) -> Tensor | None:
        """The scores that were asked for once, None where they can be computed anew or were not needed."""
        return self._held

    def units(self, mask: Tensor | None) -> Tensor:
        """Return the units' scores."""
        scores = self.scores()
        return scores if self._by_unit(scores) else self._pattern.group(scores, mask)

    def spreading(self) -> Tensor:
        """Return what :meth:`Pattern.spread` reads: the scores, or for scores by unit just the parameter's shape."""
        if self._pattern.streams:
            return self._parameter
        scores = self.scores()
        return self._parameter.detach() if self._by_unit(scores) else scores

    def _by_unit(self, scores: Tensor) -> bool:
        return tuple(scores.shape) != self.shape

    def _check_form(self, scores: Any) -> None:
        if not isinstance(scores, Tensor) or scores.is_complex():
            raise TypeError(
                f"The saliency of parameter {self.name!r} should be a real Tensor, but given {scores!r:.80}"
            )
        shape = tuple(scores.shape)
        whole = self._pattern.share == 1 and not self._pattern.streams and len(self.shape) > 1
        by_unit = (self._pattern.count(self.shape),) if whole else None
        if shape not in (self.shape, by_unit):
            also = f", or {by_unit}, one a unit" if by_unit else ""
            raise ValueError(
                f"The saliency of parameter {self.name!r} should have its shape {self.shape}{also}, but given {shape}"
            )

    def _check_finite(self, scores: Tensor) -> None:
        if scores.numel() and not all(torch.isfinite(edge) for edge in scores.aminmax()):
            count = int((~scores.isfinite()).sum())
            raise NonFiniteSaliency(
                f"The saliency of parameter {self.name!r} has {count} of {scores.numel()} values that are NaN or "
                "infinite; nothing was pruned. Has training diverged?"
            )
