"""PartSaliency: the scores of the part of a parameter that lies on this rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ignite_prune._utils.shard import Part, is_sharded, local
from ignite_prune.saliency import Random
from ignite_prune.saliency.base import Saliency
from ignite_prune.saliency.from_callable import FromCallable
from ignite_prune.saliency.given import Given


@dataclass(frozen=True, eq=False)
class PartSaliency(Saliency):
    """A saliency as a function of a part: entry by entry, or taken from the scores of the whole parameter.

    A callable of the user's is called with the DTensor, so that its sums and norms are those of the whole parameter.

    Args:
        source: its randomness drawn and its evidence bound.
        whole: the parameter, sharded or not.
        part: what of it lies here.
    """

    source: Saliency
    whole: Tensor
    part: Part
    by_row: ClassVar[bool] = True

    @property
    def data_dependent(self) -> bool:  # type: ignore[override]
        """Whether the source's scores are."""
        return self.source.data_dependent

    @property
    def evident(self) -> Saliency:
        return self.source

    def rows(self, name: str) -> int | None:
        return self.source.rows(name)

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        if isinstance(self.source, Random):
            return self.source.part(name, self.part).to(parameter.device)
        if not isinstance(self.source, (FromCallable, Given)):
            return self.source(name, parameter)
        scores: Any = self.source(name, self.whole.detach())
        if is_sharded(scores):
            given: Any = self.whole
            if scores.shape != given.shape:
                raise ValueError(
                    f"The saliency of parameter {name!r} should have its shape {tuple(given.shape)}, but given "
                    f"{tuple(scores.shape)}"
                )
            if is_sharded(given):
                return local(scores.redistribute(given.device_mesh, given.placements))
            scores = scores.full_tensor()
        return self.part.of(scores).to(parameter.device) if tuple(scores.shape) == self.part.shape else scores
