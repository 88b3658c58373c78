"""A parameter's scores, checked, and asked for no more often than is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ignite_prune.pattern import Pattern
from ignite_prune.saliency import NonFiniteSaliency, Saliency
from ignite_prune.update.param_groups import Group

Average = Callable[[Tensor], Tensor]
"""Takes this rank's scores and returns the mean over all ranks'."""


def scorers(
    group: Group, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]
) -> dict[str, ParameterScores]:
    """Return a scorer for each parameter of a group, whose randomness has been drawn and evidence bound."""
    return {
        name: ParameterScores(name, parameters[name], group["saliency"], group["pattern"], masks[name])
        for name in group["scored"]
    }


class ParameterScores:
    """One parameter's scores, checked: held where they depend on data, computed anew where that is cheap and pure.

    Args:
        name: the parameter's name.
        parameter: the parameter, any shape.
        saliency: the formula.
        pattern: tells whether one score a unit will do.
        mask: the mask so far; scores of entries that are gone may be anything.
    """

    def __init__(
        self, name: str, parameter: Tensor, saliency: Saliency, pattern: Pattern, mask: Tensor | None = None
    ) -> None:
        self.name = name
        self.shape = tuple(parameter.shape)
        self.held: Tensor | None = None
        """Scores that were asked for once; None where they can be computed anew or were not needed."""
        self._parameter, self._saliency, self._pattern, self._mask = parameter, saliency, pattern, mask
        self._checked = False

    def ask(self) -> None:
        """Ask for scores that depend on data; others are computed when they are needed.

        Raises:
            TypeError, ValueError: scores of the wrong type or shape; or whatever the saliency raises.
        """
        if self._saliency.data_dependent and self.held is None:
            self.held = self._computed().to(self._parameter.device, copy=True)

    def average(self, average: Average) -> None:
        """Make scores that depend on data the mean of every rank's."""
        if self.held is not None:
            self.held = average(self.held)

    def scores(self) -> Tensor:
        """Return the scores, floating point, of the parameter's shape or 1-D with one a unit.

        Raises:
            NonFiniteSaliency: one is NaN or infinite.
            TypeError, ValueError: see :meth:`ask`.
        """
        self.ask()
        scores = self._computed() if self.held is None else self.held
        if not self._checked:
            self._check_finite(scores)
            self._checked = True
        return scores

    def units(self, mask: Tensor | None) -> Tensor:
        """Return the units' scores."""
        scores = self.scores()
        if self._is_by_unit(scores):
            return scores
        try:
            return self._pattern.group(scores, mask)
        except ValueError as error:
            raise ValueError(f"The saliency of parameter {self.name!r}: {error}") from None

    def spreading(self) -> Tensor:
        """Return what :meth:`Pattern.spread` reads: the scores, or for scores by unit just the parameter's shape."""
        if self._pattern.streams:
            return self._parameter
        scores = self.scores()
        return self._parameter.detach() if self._is_by_unit(scores) else scores

    def _computed(self) -> Tensor:
        scores = self._saliency(self.name, self._parameter)
        if not self._checked:
            self._check_form(scores)
        scores = scores.detach()
        if not scores.is_floating_point():
            return scores.double()
        # Half is only compared where entries are units; sums and norms want room.
        return scores if scores.itemsize >= 4 or self._pattern.streams else scores.float()

    def _is_by_unit(self, scores: Tensor) -> bool:
        return tuple(scores.shape) != self.shape

    def _check_form(self, scores: Any) -> None:
        if not isinstance(scores, Tensor) or scores.is_complex() or scores.layout != torch.strided:
            raise TypeError(
                f"The saliency of parameter {self.name!r} should be a real dense Tensor, but given {scores!r:.80}"
            )
        shape = tuple(scores.shape)
        by_unit = (self._pattern.count(self.shape),) if self._pattern.by_unit else None
        if shape != self.shape and not self._pattern.takes(shape, self.shape):
            also = f", or {by_unit}, one a unit" if by_unit else ""
            if by_unit is None and len(shape) == 1 and shape[0] == self.shape[0]:
                also = " (it gives one score a unit: take pattern=Channel())"
            raise ValueError(
                f"The saliency of parameter {self.name!r} should have its shape {self.shape}{also}, but given {shape}"
            )

    def _check_finite(self, scores: Tensor) -> None:
        if all_finite(scores):
            return
        bad = ~scores.isfinite()
        if self._mask is not None and not self._is_by_unit(scores):
            bad &= self._mask  # 0/0 at what is pruned already harms nobody
        if bad.any():
            raise NonFiniteSaliency(
                f"The saliency of parameter {self.name!r} has {int(bad.sum())} of {scores.numel()} values that are NaN "
                "or infinite; nothing was pruned. Has training diverged?"
            )


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, in one pass that writes nothing."""
    return not values.numel() or all(bool(torch.isfinite(edge)) for edge in values.aminmax())
