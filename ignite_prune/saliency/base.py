"""The one interface every saliency has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ignite_prune.saliency.needs import Need

_NOTHING = "nothing has been gathered yet"
SOURCES = "In training a PruneHandler gathers it from update to update; in one shot it comes from data= and loss_fn="


class NonFiniteSaliency(ValueError):
    """A saliency held NaN or infinity: nothing was pruned by it."""


class MissingEvidence(ValueError):
    """A saliency was asked without what it needs beyond the weight; magnitude is never put in its place."""


class Saliency(ABC):
    """A formula from a parameter's name and value to one score an entry, larger = more important.

    A formula is config: frozen and stateless. Class attributes tell the caller how to treat it.

    Attributes:
        data_dependent: it may differ from rank to rank, so it is asked for once an update and averaged over ranks.
        randomised: it draws; :meth:`draw` throws its dice.
        at_init: it judges a network that is not trained and not pruned yet.
        some_layers: it has something to say of some layers alone.
        by_row: scores are compared within each row alone, see :meth:`rows`.
        once: it scores a network at its initialisation, so an update of one that is pruned already is refused.
        steps: in how many steps of equal ratio an update goes from one density to the next; scores are computed again
            at each.
    """

    data_dependent: ClassVar[bool] = False
    randomised: ClassVar[bool] = False
    at_init: ClassVar[bool] = False
    some_layers: ClassVar[bool] = False
    by_row: ClassVar[bool] = False
    once: bool = False
    steps: int = 1

    @abstractmethod
    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        """Return the scores of ``parameter``: its shape, or 1-D with one score a unit."""

    def draw(self, generator: torch.Generator) -> Saliency:
        """Return this formula with its randomness fixed by ``generator``: from then on a pure function."""
        return self

    @property
    def needs(self) -> tuple[Need, ...]:
        """The evidence it needs."""
        return ()

    def rows(self, name: str) -> int | None:
        """Return the dimension of a parameter's rows if scores are compared within each row alone, all pruned alike."""
        return None


class Informed(Saliency):
    """A formula that needs one kind of evidence beside the weight.

    ``formula(weight, evidence)`` is the mathematics, a pure function of tensors; what it needs is gathered by a
    ``PruneHandler`` in training, or by ``score`` and ``prune_model`` from ``data``.
    """

    @property
    @abstractmethod
    def need(self) -> Need:
        """The evidence it needs."""

    @abstractmethod
    def formula(self, weight: Tensor, evidence: Any) -> Tensor:
        """Return the scores of a weight from its evidence."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return (self.need,)

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        raise MissingEvidence(_missing(self, name, _NOTHING))

    def row_dim(self, evidence: Any) -> int | None:
        """Return the dimension of the rows, see :meth:`rows`, of a parameter with this evidence."""
        return None

    def bind(self, found: Mapping[str, Any], reasons: Mapping[str, str] = MappingProxyType({})) -> Saliency:
        """Return this formula with its evidence: from then on a pure function.

        Args:
            found: evidence by parameter name.
            reasons: why a parameter has none.
        """
        return Bound(self, found, reasons)


def _missing(saliency: Saliency, name: str, reason: str) -> str:
    return f"{type(saliency).__name__} has no evidence for parameter {name!r}: {reason}. {SOURCES}"


@dataclass(frozen=True, eq=False)
class Bound(Saliency):
    """A formula with its evidence."""

    source: Informed
    found: Mapping[str, Any]
    reasons: Mapping[str, str]
    scale: float = 1.0
    by_row: ClassVar[bool] = True

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        if name not in self.found:
            raise MissingEvidence(_missing(self.source, name, self.reasons.get(name, _NOTHING)))
        weight = parameter.detach()
        # Half precision has no room for products.
        scores = self.source.formula(weight.float() if weight.itemsize < 4 else weight, self.found[name])
        return scores if self.scale == 1.0 else scores * self.scale

    def rows(self, name: str) -> int | None:
        return self.source.row_dim(self.found[name]) if name in self.found else None
