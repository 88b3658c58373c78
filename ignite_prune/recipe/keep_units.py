"""KeepUnits: a target number of remaining units, converted to a sparsity once the model is known."""

from __future__ import annotations

from typing import Any

from pydantic import StrictInt, field_validator
from torch import nn

from ignite_prune.core.selection import select
from ignite_prune.recipe.annotations import Number
from ignite_prune.recipe.recipe_model import RecipeModel
from ignite_prune.schedule import OneShot


class KeepUnits(RecipeModel):
    """Whole units of ``rows`` slices along a dim are pruned once, until ``units`` are left in each weight.

    Args:
        units: how many are left, such as attention heads.
        rows: slices of a unit: the head size; 1 for neurons.
        at: the step of the update.
        dim: the dimension of the weights that the units lie along.
    """

    units: StrictInt
    rows: StrictInt = 1
    at: Number = 1
    dim: StrictInt = 0

    @field_validator("units", "rows")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("should be at least 1")
        return value

    def schedule(self, model: nn.Module, params: Any) -> OneShot:
        """Return the schedule for some parameters of a model.

        Raises:
            ValueError: the weights differ in their number of units, or have fewer.
        """
        counts = {}
        for name, parameter in select(model, params).items():
            size = parameter.shape[self.dim]
            if size % self.rows:
                raise ValueError(
                    f"{name!r} has {size} slices along dim {self.dim}, which units of {self.rows} do not fill"
                )
            counts[name] = size // self.rows
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"weights differ in their number of units of {self.rows} rows: {dict(list(counts.items())[:4])}"
            )
        (total,) = set(counts.values())
        if self.units > total:
            raise ValueError(
                f"{self.units} units should be left, but {next(iter(counts))!r} has {total} of {self.rows} rows"
            )
        return OneShot(1 - self.units / total, at=self.at)
