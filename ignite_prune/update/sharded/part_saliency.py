"""PartSaliency: the scores of the part of a parameter that lies on this rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from ignite_prune._utils.shard import Part, is_sharded, local
from ignite_prune.saliency import Random
from ignite_prune.saliency.base import Bound, Saliency
from ignite_prune.saliency.from_callable import FromCallable
from ignite_prune.saliency.given import Given
from ignite_prune.saliency.needs import Moments


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
        """Whether scores are kept: the source's depend on data, or take long."""
        return self.source.data_dependent or (isinstance(self.source, Bound) and self._moments is not None)

    @property
    def _moments(self) -> Moments | None:
        """The second moments of the layer's inputs, if they are the evidence."""
        assert isinstance(self.source, Bound)
        found = next(iter(self.source.found.values()), None)
        return found if isinstance(found, Moments) else None

    @property
    def evident(self) -> Saliency:
        return self.source

    def rows(self, name: str) -> int | None:
        return self.source.rows(name)

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        if isinstance(self.source, Random):
            return self.source.part(name, self.part).to(parameter.device)
        if isinstance(self.source, Bound) and name in self.source.found:
            return self._informed(self.source, name, parameter)
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

    def _informed(self, source: Bound, name: str, parameter: Tensor) -> Tensor:
        """Return the scores by evidence, of which a layer's inputs have the whole shape, and gradients the part's."""
        evidence = source.found[name]
        if isinstance(evidence, Moments):
            return self._by_moments(source, name, parameter, evidence)
        if isinstance(evidence, Tensor) and evidence.ndim == len(self.part.shape) + 1:
            for dim, (first, size) in enumerate(zip(self.part.start, self.part.size), start=1):
                evidence = evidence.narrow(dim, first if size else 0, size) if evidence.shape[dim] > 1 else evidence
        return replace(source, found={name: evidence})(name, parameter)

    def _by_moments(self, source: Bound, name: str, parameter: Tensor, evidence: Moments) -> Tensor:
        """Return the scores of whole rows, of which this rank's columns are its part's; other columns are 0."""
        rows, start, size = int(evidence.transposed), list(self.part.start), list(self.part.shape)
        if len(evidence.sums) == 1:  # of a grouped convolution, the group of a row is seen from all rows
            start[rows], size[rows] = 0, self.part.size[rows]
        place = replace(self.part, shape=tuple(size), start=tuple(start))
        whole = parameter.new_zeros(size)
        place.of(whole).copy_(parameter.detach())
        return place.of(source(name, whole)).contiguous()
