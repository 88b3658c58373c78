"""Base classes of saliencies, and the errors that they raise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ignite_prune._utils.stated import stated

if TYPE_CHECKING:
    from ignite_prune.saliency.needs import Need

_NOTHING = "nothing has been gathered yet"
SOURCES = "In training a PruneHandler gathers it from update to update; in one shot it comes from data= and loss_fn="


class NonFiniteSaliency(ValueError):
    """A saliency contains NaN or infinity; nothing was pruned."""


class MissingEvidence(ValueError):
    """A saliency was called without the evidence (gradients, activations, ...) that it needs beyond the weight."""


class Saliency(ABC):
    """A formula that maps a parameter's name and value to one score per entry, larger = more important.

    Saliencies are configuration: frozen and stateless. The class attributes describe how callers have to treat them.

    Attributes:
        data_dependent: scores may differ between ranks, so they are computed once per update and averaged over ranks.
        randomised: scores are random; :meth:`draw` fixes them.
        at_init: made for a network that is neither trained nor pruned yet.
        some_layers: only defined for some kinds of layers.
        by_slice: the formula compares slices of dim 0; where a layer stores inputs first, it is called with the
            weight's first two dimensions exchanged.
        pointwise: each score depends on the value of its entry alone, so that an update can compute the scores in
            pieces, from 1-D parts of the weight; not inherited by a class that overrides ``__call__``.
        by_row: scores are only compared within a row, see :meth:`rows`.
        once: updates of a network that is already pruned are refused; see ``at_init``.
        steps: number of steps, of equal density ratio, in which an update prunes; scores are recomputed at each step.
    """

    data_dependent: ClassVar[bool] = False
    randomised: ClassVar[bool] = False
    at_init: ClassVar[bool] = False
    some_layers: ClassVar[bool] = False
    by_slice: ClassVar[bool] = False
    pointwise: ClassVar[bool] = False
    by_row: ClassVar[bool] = False
    once: bool = False
    steps: int = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.pointwise = stated(cls, "pointwise", "__call__")

    @abstractmethod
    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        """Return the scores of ``parameter``, in its shape or 1-D with one score per unit."""

    def draw(self, generator: torch.Generator) -> Saliency:
        """Return a copy whose randomness is fixed by ``generator``: a pure function."""
        return self

    @property
    def evident(self) -> Saliency:
        """What holds the evidence of a bound saliency: this object itself, unless it stands for another."""
        return self

    @property
    def needs(self) -> tuple[Need, ...]:
        """The evidence that the formula needs beyond the weight."""
        return ()

    def rows(self, name: str) -> int | None:
        """Return the dimension of a parameter's rows if scores are only compared within a row, else None.

        All rows are then pruned to the same sparsity.
        """
        return None


class Informed(Saliency):
    """A saliency that needs one kind of evidence beyond the weight.

    ``formula(weight, evidence)`` is a pure function of tensors. The evidence is collected by a ``PruneHandler`` during
    training, or by ``score`` and ``prune_model`` from ``data``.
    """

    @property
    @abstractmethod
    def need(self) -> Need:
        """The evidence that :meth:`formula` takes."""

    @abstractmethod
    def formula(self, weight: Tensor, evidence: Any) -> Tensor:
        """Return the scores of a weight from its evidence."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return (self.need,)

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        raise MissingEvidence(_missing(self, name, _NOTHING))

    def row_dim(self, evidence: Any) -> int | None:
        """Return the row dimension (see :meth:`rows`) of a parameter with this evidence, or None."""
        return None

    def bind(self, found: Mapping[str, Any], reasons: Mapping[str, str] = MappingProxyType({})) -> Saliency:
        """Return this formula bound to its evidence: a pure function.

        Args:
            found: evidence by parameter name.
            reasons: for parameters without evidence, the reason, which the error message quotes.
        """
        return Bound(self, found, reasons)


def _missing(saliency: Saliency, name: str, reason: str) -> str:
    return f"{type(saliency).__name__} has no evidence for parameter {name!r}: {reason}. {SOURCES}"


@dataclass(frozen=True, eq=False)
class Bound(Saliency):
    """A formula bound to its evidence.

    Args:
        source: the formula.
        found: evidence by parameter name.
        reasons: for parameters without evidence, the reason.
        scale: factor of all scores.
    """

    source: Informed
    found: Mapping[str, Any]
    reasons: Mapping[str, str]
    scale: float = 1.0
    by_row: ClassVar[bool] = True

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        if name not in self.found:
            raise MissingEvidence(_missing(self.source, name, self.reasons.get(name, _NOTHING)))
        weight = parameter.detach()
        # Products overflow or underflow in half precision.
        scores = self.source.formula(weight.float() if weight.itemsize < 4 else weight, self.found[name])
        return scores if self.scale == 1.0 else scores * self.scale

    def rows(self, name: str) -> int | None:
        return self.source.row_dim(self.found[name]) if name in self.found else None
