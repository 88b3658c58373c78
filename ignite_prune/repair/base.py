"""Base class of repairs, and the plan of an update that they change."""

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
    from ignite_prune.core.batches import Batch
    from ignite_prune.saliency.needs import Need

Passes = Callable[[], "Iterator[Batch]"]
"""Returns an iterator over the batches of the calibration data; each call starts again."""


@dataclass
class RepairContext:
    """A model and the update planned for it. A repair changes the planned masks and values, never the model.

    Args:
        model: the unwrapped model, as it was before the update.
        parameters: the selected parameters by name.
        before: the current masks by name, None for a parameter without one.
        masks: the new masks of the parameters that the update prunes.
        found: returns the evidence of a need, by parameter name.
        reasons: returns why parameters have no evidence of a need, by parameter name.
        passes: returns the calibration batches; None if there are none.
        values: planned values of parameters and buffers, by name.
        overwrite: whether the evidence is not needed afterwards, so that a repair may overwrite it.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]
    before: Mapping[str, Tensor | None]
    masks: dict[str, Tensor]
    found: Callable[[Need], Mapping[str, Any]]
    reasons: Callable[[Need], Mapping[str, str]]
    passes: Passes | None = None
    values: dict[str, Tensor] = field(default_factory=dict)
    overwrite: bool = False

    def weight(self, name: str) -> Tensor:
        """Return the planned value of a parameter, in which newly pruned entries may not be 0 yet."""
        return self.values[name] if name in self.values else self.parameters[name].detach()


@dataclass(frozen=True)
class PrunedParameter:
    """One parameter that the update prunes.

    Args:
        name: its name.
        saliency: the saliency that selected its mask.
        pattern: the pattern of its mask.
    """

    name: str
    saliency: Saliency
    pattern: Pattern


class Repair(ABC):
    """A step after the selection of masks that reduces the error of pruning. Frozen and stateless.

    Attributes:
        whole: it works on the whole model, and runs after repairs of single layers.
        passes: it runs the pruned model, and so needs calibration data.
        by_layer: it repairs each layer without regard to the others, so that layers may be given one after another.
    """

    whole: ClassVar[bool] = False
    passes: ClassVar[bool] = False
    by_layer: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[Need, ...]:
        """The evidence that it needs, collected before the update."""
        return ()

    def selects(self, parameter: PrunedParameter, mask: Tensor, transposed: bool) -> bool:
        """Return whether it selects a parameter's mask again, and of the given one only the number of zeros matters.

        Args:
            parameter: that the update prunes.
            mask: its new mask.
            transposed: whether dim 0 of the parameter holds the inputs.
        """
        return False

    @abstractmethod
    def __call__(self, context: RepairContext, pruned: Sequence[PrunedParameter]) -> None:
        """Change the planned masks and values.

        Args:
            context: the model and the plan, changed in place.
            pruned: the parameters that the update prunes.

        Raises:
            ValueError: evidence is missing, or the repair cannot be computed.
        """


def evidence_for(context: RepairContext, repair: Repair, name: str) -> Any:
    """Return the evidence of a parameter.

    Raises:
        MissingEvidence: there is none.
    """
    (need,) = repair.needs
    found = context.found(need)
    if name not in found:
        reason = context.reasons(need).get(name, "nothing has been gathered yet")
        raise MissingEvidence(
            f"repair.{type(repair).__name__} has no evidence for parameter {name!r}: {reason}. {SOURCES}"
        )
    return found[name]


def as_repairs(value: Any) -> tuple[Repair, ...]:
    """Return ``value`` (None, a repair or a sequence of them) as a tuple.

    Raises:
        TypeError: an element is not a repair.
    """
    listed = () if value is None else value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    for each in listed:
        if not isinstance(each, Repair):
            named = f"the class {each.__name__} (write {each.__name__}())" if isinstance(each, type) else repr(each)
            raise TypeError(f"Argument repair should be one of ignite_prune.repair, or several, but given {named}")
    return tuple(listed)
