"""Rounds: repeated training, pruning and rewinding."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import PlainValidator, StrictInt, StrictStr, WithJsonSchema

from ignite_prune.handlers.lottery.rewind import Rewind
from ignite_prune.recipe.annotations import Number
from ignite_prune.recipe.models import read_record
from ignite_prune.recipe.recipe_model import RecipeModel

_SCHEMA = {"x-record": [f"{Rewind.__module__}:Rewind"]}
_REWIND = Annotated[Any, PlainValidator(partial(read_record, (Rewind,))), WithJsonSchema(_SCHEMA)]


class Rounds(RecipeModel):
    """What ``create_pruning_engine`` is given; the schedule of ``prune`` counts rounds then.

    Args:
        rounds: how many.
        epochs: of each round.
        rewind: what is rewound after each update; None: nothing.
        fine_tune: epochs trained once after the last round.
        floor: ``{metric: value}``: the run stops before it prunes further when one falls below.
        target: a sparsity at which the run stops.
    """

    rounds: StrictInt
    epochs: StrictInt
    rewind: _REWIND = None
    fine_tune: StrictInt = 0
    floor: dict[StrictStr, Number] | None = None
    target: Number | None = None
