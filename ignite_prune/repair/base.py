"""The one interface every repair has, and what it works on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ignite_prune.pattern import Pattern
from ignite_prune.saliency import MissingEvidence, Saliency
from ignite_prune.saliency.base import SOURCES

if TYPE_CHECKING:
    from ignite_prune.evidence.calibration import Batch
    from ignite_prune.saliency.needs import Need

Passes = Callable[[], "Iterator[Batch]"]
"""Gives the batches of the calibration data anew at each call."""


@dataclass
class RepairContext:
    """A model about to be pruned: what is planned for it. A repair changes the plan, never the model.

    Args:
        model: the unwrapped model, as it was before the update.
        parameters: the selected parameters by name.
        before: the masks so far, None where nothing is pruned.
        masks: the new masks of those parameters that get sparser.
        found: evidence by need and name, gathered before the update.
        passes: the calibration batches, or None where there are none.
        values: planned values of parameters and buffers, by name.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]
    before: Mapping[str, Tensor | None]
    masks: dict[str, Tensor]
    found: Callable[[Need], Mapping[str, Any]]
    reasons: Callable[[Need], Mapping[str, str]]
    passes: Passes | None = None
    values: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, name: str) -> Tensor:
        """Return a parameter's planned value; what its new mask prunes may not be 0 yet."""
        return self.values[name] if name in self.values else self.parameters[name].detach()


@dataclass(frozen=True)
class PrunedParameter:
    """One parameter that gets sparser.

    Args:
        name: its name.
        saliency: what chose its mask.
        pattern: which entries go together.
    """

    name: str
    saliency: Saliency
    pattern: Pattern


class Repair(ABC):
    """A step after the mask that makes up for what was pruned. A value: frozen, stateless.

    Attributes:
        whole: it concerns the model as a whole, and comes after those that concern single layers.
        passes: it needs calibration data, as it runs the pruned model.
    """

    whole: ClassVar[bool] = False
    passes: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[Need, ...]:
        """The evidence it needs, gathered before the update."""
        return ()

    @abstractmethod
    def __call__(self, patient: RepairContext, cuts: Sequence[PrunedParameter]) -> None:
        """Change what is planned for the parameters that get sparser.

        Raises:
            ValueError: it lacks evidence, or cannot be computed.
        """


def evidence_for(patient: RepairContext, repair: Repair, name: str) -> Any:
    """Return a parameter's evidence.

    Raises:
        MissingEvidence: there is none.
    """
    (need,) = repair.needs
    found = patient.found(need)
    if name not in found:
        reason = patient.reasons(need).get(name, "nothing has been gathered yet")
        raise MissingEvidence(
            f"repair.{type(repair).__name__} has no evidence for parameter {name!r}: {reason}. {SOURCES}"
        )
    return found[name]


def as_repairs(value: Any) -> tuple[Repair, ...]:
    """Return repairs as a tuple; None is none, one alone a tuple of one.

    Raises:
        TypeError: it is no repair.
    """
    listed = () if value is None else value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    for each in listed:
        if not isinstance(each, Repair):
            named = f"the class {each.__name__} (write {each.__name__}())" if isinstance(each, type) else repr(each)
            raise TypeError(f"Argument repair should be one of ignite_prune.repair, or several, but given {named}")
    return tuple(listed)
