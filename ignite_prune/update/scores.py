"""Scores of parameters, and the masks that are chosen by them.

saliency → pattern.group → allocation → exact top-k → pattern.spread. Nothing is changed on the way: the new masks are
the only result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.score_source import EntryScores, ScoreSource
from ignite_prune._utils.topk import keep_top
from ignite_prune._utils.topk_by_row import keep_top_by_row
from ignite_prune.allocation.base import Allocation, Layer
from ignite_prune.pattern import Pattern
from ignite_prune.saliency import Bound, NonFiniteSaliency, Saliency


class ParameterScores:
    """Computes and checks the scores of one parameter.

    Scores that depend on data are cached: they are computed once, and averaged over ranks. Others are cheap and pure
    and are computed again when they are needed, so that no copy of the parameter is held.

    Args:
        name: the parameter's name.
        parameter: the parameter, any shape.
        saliency: the formula, its randomness drawn and its evidence bound.
        pattern: which entries are pruned together.
        mask: the mask so far, None where nothing is pruned; scores of pruned entries may be anything.
        inputs_first: whether dim 0 of the parameter holds inputs, and dim 1 outputs.

    Attributes:
        outputs: the dimension of the outputs, which scores of units are of.
        cached: scores that depend on data, once they are computed.
    """

    def __init__(
        self,
        name: str,
        parameter: Tensor,
        saliency: Saliency,
        pattern: Pattern,
        mask: Tensor | None = None,
        inputs_first: bool = False,
    ) -> None:
        self.name = name
        self.shape = tuple(parameter.shape)
        self.outputs = int(inputs_first)
        self.cached: Tensor | None = None
        self._parameter, self._saliency, self._pattern, self._mask = parameter, saliency, pattern, mask
        self._checked = False

    @property
    def device(self) -> torch.device:
        """Where the parameter lies."""
        return self._parameter.device

    @property
    def rows(self) -> int | None:
        """The dimension that indexes rows, if scores are only compared within a row."""
        return self._saliency.rows(self.name) if self._saliency.by_row else None

    @property
    def lacks_evidence(self) -> bool:
        """Whether the saliency needs evidence about the parameter, and there is none."""
        saliency = self._saliency.evident
        return isinstance(saliency, Bound) and self.name not in saliency.found

    def compute(self, finite: bool = True) -> Tensor:
        """Return the scores, floating point, of the parameter's shape or 1-D with one score a unit.

        Args:
            finite: check that they are finite.

        Raises:
            NonFiniteSaliency: one is NaN or infinite.
            TypeError, ValueError: they have the wrong type or shape; or whatever the saliency raises.
        """
        scores = self.cached
        if scores is None:
            turns = self.outputs and self._saliency.by_slice
            scores = self._saliency(self.name, self._parameter.transpose(0, 1) if turns else self._parameter)
            if not self._checked:
                check_real(self.name, scores)
                if tuple(scores.shape) != self.shape:
                    self._check_shape(tuple(scores.shape))
            scores = scores.detach()
            if not scores.is_floating_point():
                scores = scores.double()
            elif scores.itemsize < 4 and not self._pattern.streams:  # sums and norms of half precision overflow
                scores = scores.float()
            if self._saliency.data_dependent:
                scores = self.cached = scores.to(self._parameter.device, copy=True)
        if finite and not self._checked:
            if not all_finite(scores):
                self._refuse_non_finite(scores)
            self._checked = True
        return scores

    def _of_part(self, part: Tensor) -> Tensor:
        """Return the scores of a 1-D part of the parameter, checked as in :meth:`compute`."""
        scores = self._saliency(self.name, part).detach()
        if not self._checked and not (scores.shape == part.shape and scores.is_floating_point() and all_finite(scores)):
            self.compute()  # raises, unless all that is wrong are pruned entries
        return scores if scores.is_floating_point() else scores.double()

    def cache(self) -> None:
        """Compute the scores now if they depend on data; they are not checked to be finite yet."""
        if self._saliency.data_dependent:
            self.compute(finite=False)

    def average(self, average: Callable[[Tensor], Tensor]) -> None:
        """Replace cached scores by their mean over ranks."""
        if self.cached is not None:
            self.cached = average(self.cached)

    def layer(self) -> Layer:
        """Return what an allocation sees of this parameter: its units, their scores, and which can still be pruned."""
        units = self._parameter.numel() if self._pattern.streams else self._pattern.count(self.shape)
        if self._mask is None:
            alive, living = None, units
        else:
            alive = self._mask if self._pattern.streams else self._pattern.alive(self._mask)
            living = int(alive.count_nonzero())
        parameter = self._parameter.detach()
        form = parameter.shape, parameter.device
        if not self._pattern.streams:
            entries = torch.empty(parameter.shape, dtype=torch.bool, device="meta")
            scores = ScoreSource(cache(self._unit_scores), self._pattern.alive(entries).shape, parameter.device)
        elif self._saliency.pointwise and self.cached is None and type(parameter) is Tensor:
            scores = EntryScores(self.compute, *form, parameter, self._of_part)
        else:
            scores = ScoreSource(self.compute, *form)
        return Layer(self.name, self.shape, units, scores, alive, living)

    def spread(self, units: Tensor) -> Tensor:
        """Return the parameter's new mask from the units that are kept (bool)."""
        if not self._pattern.streams:
            if self._checked and self._pattern.repeats:
                return self._pattern.spread(units, self._parameter.detach(), self._mask)
            scores = self.compute()
            return self._pattern.spread(
                units, self._parameter.detach() if self._is_by_unit(scores) else scores, self._mask
            )
        rows = self._saliency.rows(self.name) if self._saliency.by_row else None
        if rows is None:
            return units
        return keep_top_by_row(self.compute(), self._mask, int(units.count_nonzero()), rows)

    def _unit_scores(self) -> Tensor:
        scores = self.compute()
        if self._is_by_unit(scores):
            return scores
        try:
            return self._pattern.group(scores, self._mask)
        except ValueError as error:
            raise ValueError(f"The saliency of parameter {self.name!r}: {error}") from None

    def _is_by_unit(self, scores: Tensor) -> bool:
        return tuple(scores.shape) != self.shape

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if self._pattern.takes(shape, self.shape):
            return
        also = f", or {(self._pattern.count(self.shape),)}, one a unit" if self._pattern.by_unit else ""
        if not also and len(shape) == 1 and shape[0] == self.shape[0]:
            also = " (it gives one score a unit: take pattern=Channel())"
        raise ValueError(
            f"The saliency of parameter {self.name!r} should have its shape {self.shape}{also}, but given {shape}"
        )

    def _refuse_non_finite(self, scores: Tensor) -> None:
        """Raise, unless all scores that are not finite are at pruned entries."""
        bad = ~scores.isfinite()
        if self._mask is not None and not self._is_by_unit(scores):
            bad &= self._mask
        if bad.any():
            raise NonFiniteSaliency(
                f"The saliency of parameter {self.name!r} has {int(bad.sum())} of {scores.numel()} values that are NaN "
                "or infinite; nothing was pruned. Has training diverged?"
            )


def choose_masks(scores: Mapping[str, ParameterScores], allocation: Allocation, fraction: float) -> dict[str, Tensor]:
    """Return the masks of some parameters with ``fraction`` of their units pruned; pruned entries stay pruned.

    Args:
        scores: of each parameter, with its mask so far.
        allocation: divides the fraction over the parameters.
        fraction: of the units, in [0, 1].

    Returns:
        Masks of the parameters that get sparser; the others are sparse enough already.

    Raises:
        NonFiniteSaliency: a score is NaN or infinite; names the parameter.
        TypeError, ValueError: scores of the wrong type or shape, an unreachable target.
    """
    masks: dict[str, Tensor] = {}
    for layer, units in choose([each.layer() for each in scores.values()], allocation, fraction):
        masks[layer.name] = scores[layer.name].spread(units)
    return masks


def choose(
    layers: Sequence[Layer], allocation: Allocation, fraction: float, least: Callable[[Layer], int] = lambda layer: 0
) -> Iterator[tuple[Layer, Tensor]]:
    """Yield each layer that gets sparser with the units that stay (bool); ``least(layer)`` units stay in any case."""
    for pool in allocation.divide(layers, fraction):
        floors = [
            max(floor, min(least(layer), layer.living))
            for floor, layer in zip(pool.floors or [0] * len(pool.layers), pool.layers)
        ]
        keep = max(pool.keep, sum(min(floor, layer.living) for floor, layer in zip(floors, pool.layers)))
        if keep >= sum(layer.living for layer in pool.layers):
            continue
        kept = keep_top(
            [layer.scores for layer in pool.layers],
            [layer.alive for layer in pool.layers],
            [layer.living for layer in pool.layers],
            keep,
            floors,
        )
        yield from zip(pool.layers, kept)


def check_real(name: str, scores: Any) -> None:
    """Raise TypeError if scores are not a real dense tensor."""
    if not isinstance(scores, Tensor) or scores.is_complex() or scores.layout != torch.strided:
        raise TypeError(f"The saliency of parameter {name!r} should be a real dense Tensor, but given {scores!r:.80}")


def all_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinite, in one pass that writes nothing."""
    if not values.numel():
        return True
    least, most = values.aminmax()
    return math.isfinite(least) and math.isfinite(most)
