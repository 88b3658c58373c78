"""RecipeModel: base class of all parts of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from ignite_prune._utils.arguments import near


class RecipeModel(BaseModel):
    """A part of a recipe: unknown fields are refused, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _fields_are_known(cls, value: Any) -> Any:
        """Refuse what is no mapping, and unknown fields, with near matches."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(
                f"should be a mapping of {', '.join(cls.model_fields) or 'no'} fields, but given {value!r:.80}"
            )
        for key in value:
            if key not in cls.model_fields:
                fields = list(cls.model_fields)
                known = near(str(key), fields) if fields else "it has no fields"
                raise PydanticCustomError("unknown", "unknown field; {known}", {"known": known, "field": key})
        return value
