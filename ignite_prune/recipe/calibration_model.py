"""CalibrationModel: the data that evidence is computed from."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from pydantic import StrictInt, StrictStr, field_validator

from ignite_prune._utils.arguments import near
from ignite_prune.recipe.recipe_model import RecipeModel
from ignite_prune.update.calibration import Calibration

LOSSES = [
    name
    for name in sorted(vars(torch.nn.functional))
    if not name.startswith("_") and (name.endswith("_loss") or name in ("cross_entropy", "binary_cross_entropy"))
]


class CalibrationModel(RecipeModel):
    """The data and the loss from which evidence is computed before each update; without it, training's own steps.

    Args:
        batches: how many of the first batches of ``attach(data=)``, or of ``loader``, are kept and used; None: with
            ``data=`` all of them, and otherwise none.
        loss_fn: a loss of ``torch.nn.functional`` by name, unless ``attach`` is given one.
    """

    batches: StrictInt | None = None
    loss_fn: StrictStr | None = None

    @field_validator("batches")
    @classmethod
    def _at_least_one(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("should be at least 1")
        return value

    @field_validator("loss_fn")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in LOSSES:
            raise ValueError(f"torch.nn.functional has no loss {value!r}; {near(value, LOSSES)}")
        return value

    def make(self, data: Iterable[Any] | None, loader: Iterable[Any] | None, loss_fn: Any, prepare_batch: Any) -> Any:
        """Return the calibration of what ``attach`` is given."""
        if loss_fn is None and self.loss_fn is not None:
            loss_fn = getattr(torch.nn.functional, self.loss_fn)
        if self.batches is not None:
            source = loader if data is None else data
            if source is None:
                raise ValueError("batches are taken from attach(..., data=), or from loader=, but neither is given")
            data = list(islice(source, self.batches))
        return Calibration(data, loss_fn, prepare_batch)
