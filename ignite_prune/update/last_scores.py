"""LastScores: scores of the last update, kept if computing them again would give other values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from ignite_prune.core.mask_store import MaskStore
from ignite_prune.saliency import Saliency
from ignite_prune.update.param_group import ParamGroup
from ignite_prune.update.plan import bound_scores, drawn

if TYPE_CHECKING:
    from ignite_prune.evidence import Evidence


@dataclass
class LastScores:
    """Scores that were drawn at random or computed from data; others are computed again when they are asked for.

    Attributes:
        drawn: each group's saliency with its randomness drawn; None where there is none, empty before an update.
        cached: scores by parameter name.
    """

    drawn: Sequence[Saliency | None] = ()
    cached: dict[str, Tensor] = field(default_factory=dict)

    def scores(self, groups: Sequence[ParamGroup], masks: MaskStore, evidence: Evidence | None) -> dict[str, Tensor]:
        """Return the scores of all scored parameters of some groups."""
        answer = {}
        for group, last in zip(groups, self.drawn or [None] * len(groups)):
            saliency = last or drawn(group, group["generator"], advance=False)
            so_far = masks.so_far(group["params"])
            for name, scores in bound_scores(group, saliency, masks, so_far, evidence).items():
                answer[name] = self.cached[name] if name in self.cached else scores.compute()
        return answer
