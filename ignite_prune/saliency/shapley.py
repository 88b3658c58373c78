"""Shapley: average increase of the loss when a unit is removed, over orders of removal."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ignite_prune._utils.arguments import check_generator, check_positive
from ignite_prune.saliency.base import Informed
from ignite_prune.saliency.needs import UnitRemoval


@dataclass(frozen=True)
class Shapley(Informed):
    r"""Shapley value of a unit: the increase of the loss when it is removed, averaged over orders of removal.

    Orders are sampled, each followed by its reverse (which cancels much of the error), and are the same for all data;
    layers of up to 8 units are computed exactly. One score per unit (dim 0), for ``Channel()``. It runs
    ``samples × units`` extra passes per batch and layer, from the layer onward if the model allows it.
    ``ignite_prune.evidence.shapley_values`` returns standard errors too.

    Args:
        samples: number of orders.
        generator: generator of the orders, used once, in the constructor; None: seed 0.

    Raises:
        TypeError, ValueError: ``samples`` is not an int of at least 1, ``generator`` not a ``torch.Generator``.

    References:
        Ancona, Öztireli, Gross, "Shapley value as principled metric for structured network pruning", 2020,
        arXiv 2006.01795.
    """

    samples: int = 5
    generator: torch.Generator | None = field(default=None, repr=False, compare=False)
    seed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_positive("samples", self.samples, whole=True)
        check_generator(self.generator)
        if self.generator is not None:
            drawn = torch.randint(2**62, (), generator=self.generator, device=self.generator.device)
            object.__setattr__(self, "seed", int(drawn))

    @property
    def need(self) -> UnitRemoval:
        return UnitRemoval(self.samples, self.seed)

    def formula(self, weight: Tensor, evidence: Tensor) -> Tensor:
        return evidence
