"""Inverted: a criterion with the opposite ranking, as a sanity check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ignite_prune.saliency.base import Informed, Saliency
from ignite_prune.saliency.needs import Need


@dataclass(frozen=True)
class Inverted(Informed):
    """Another saliency with the sign reversed: the least important entries are kept.

    A useful criterion clearly beats its inversion. Scores may be negative, so patterns that take norms of scores
    (``Channel``) raise an error.

    Args:
        saliency: the saliency to invert; its evidence is collected as usual.

    Raises:
        TypeError: ``saliency`` is not a :class:`Saliency`.

    Example:
        >>> from ignite_prune.saliency import Magnitude
        >>> Inverted(Magnitude())("fc.weight", torch.tensor([-2.0, 0.5]))
        tensor([-2.0000, -0.5000])

    References:
        Frankle, Dziugaite, Roy, Carbin, "Pruning neural networks at initialization: why are we missing the mark?",
        2021, arXiv 2009.08576.
    """

    saliency: Saliency

    def __post_init__(self) -> None:
        if not isinstance(self.saliency, Saliency):
            raise TypeError(
                f"Argument saliency should be one of ignite_prune.saliency (as_saliency(function) for a plain "
                f"function), but given {self.saliency!r}"
            )
        for trait in ("data_dependent", "randomised", "at_init", "some_layers", "by_slice", "by_row", "once", "steps"):
            object.__setattr__(self, trait, getattr(self.saliency, trait))

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        return -self.saliency(name, parameter)

    def draw(self, generator: torch.Generator) -> Inverted:
        return Inverted(self.saliency.draw(generator))

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.saliency.needs

    @property
    def need(self) -> Need:
        assert isinstance(self.saliency, Informed)  # only called if there are needs
        return self.saliency.need

    def formula(self, weight: Tensor, evidence: Any) -> Tensor:
        assert isinstance(self.saliency, Informed)
        return -self.saliency.formula(weight, evidence)

    def row_dim(self, evidence: Any) -> int | None:
        assert isinstance(self.saliency, Informed)
        return self.saliency.row_dim(evidence)

    def rows(self, name: str) -> int | None:
        return self.saliency.rows(name)
