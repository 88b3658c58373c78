"""Given: scores computed by the user, like ``importance_scores`` of ``torch.nn.utils.prune``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ignite_prune.saliency.base import Saliency


@dataclass(frozen=True, eq=False)
class Given(Saliency):
    """Scores computed elsewhere, by parameter name.

    Args:
        scores: ``{name: tensor}``, each of the parameter's shape, or 1-D with one score per unit for ``Channel`` and
            ``Head``. Under ``torch.distributed`` they are averaged over ranks.

    Raises:
        TypeError: ``scores`` is not a mapping of tensors.
        ValueError: (when called) there are no scores for the parameter.

    Example:
        >>> import torch
        >>> Given({"fc.weight": torch.tensor([1.0, 3.0])})("fc.weight", torch.zeros(2))
        tensor([1., 3.])
    """

    scores: Mapping[str, Tensor] = field(repr=False)
    data_dependent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.scores, Mapping) or not all(isinstance(s, Tensor) for s in self.scores.values()):
            raise TypeError(f"Argument scores should be a mapping {{name: Tensor}}, but given {type(self.scores)}")

    def __call__(self, name: str, parameter: Tensor) -> Tensor:
        if name not in self.scores:
            near = difflib.get_close_matches(name, self.scores, cutoff=0.5)
            hint = f"near matches: {near}" if near else f"there are scores for {sorted(self.scores)[:5]}"
            raise ValueError(f"Given has no scores for parameter {name!r}; {hint}")
        return self.scores[name].detach()
