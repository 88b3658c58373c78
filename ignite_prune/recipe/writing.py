"""Converts objects to the data of a file, which ``recipe.load`` reads back as equal objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.recorded_arguments import RecordedArguments, arguments_of
from ignite_prune.recipe.epochs import Epochs
from ignite_prune.recipe.kinds import is_record, kind_of_base, pieces
from ignite_prune.recipe.models import EITHER, FROM_ATTACH, PieceModel
from ignite_prune.recipe.recipe_model import RecipeModel
from ignite_prune.recipe.rules import Rule, written_rule
from ignite_prune.recipe.values import write_function, write_tensors
from ignite_prune.saliency import FromCallable


def written(value: Any) -> Any:
    """Return plain data for a piece, a setting or a part of a recipe.

    Raises:
        ValueError: a file cannot hold it: a lambda, a class of the user's own, long tensors.
    """
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, PieceModel):
        return _typed(value.piece, {name: written(each) for name, each in value.given().items()})
    if isinstance(value, RecipeModel):
        return {
            name: written(getattr(value, name)) for name in type(value).model_fields if name in value.model_fields_set
        }
    if isinstance(value, FromCallable):
        return write_function(value.function)
    if isinstance(value, Epochs):
        return {"epochs": value.epochs}
    if isinstance(value, Rule):
        return written_rule(value)
    if isinstance(value, RecordedArguments):
        return _typed(type(value), given_by_file(value))
    if is_record(type(value)):
        return _record(value)
    return _other(value)


def given_by_file(value: RecordedArguments) -> dict[str, Any]:
    """Return the arguments of an object that a file gives, as data; others come from ``attach``."""
    given = {}
    for name, each in arguments_of(value).items():
        if name not in FROM_ATTACH or (name in EITHER and isinstance(each, str)):
            given["seed" if name == "generator" else name] = written(each)
    return {name: each for name, each in given.items() if each is not None or name != "seed"}


def _typed(piece: type, fields: dict[str, Any]) -> Any:
    return {"type": piece.__name__, **fields} if fields else piece.__name__


def _record(value: Any) -> Any:
    kind = kind_of_base(type(value))
    if kind is not None and type(value) not in pieces(kind).values():
        raise ValueError(
            f"{type(value).__module__}.{type(value).__name__} is a class of your own, which a recipe cannot name"
        )
    fields = {}
    for each in dataclasses.fields(value):
        given = getattr(value, each.name)
        if not _is_default(each, given):
            fields[each.name] = written(given)
    return _typed(type(value), fields)


def _is_default(field: Any, given: Any) -> bool:
    return field.default is not dataclasses.MISSING and type(given) is type(field.default) and given == field.default


def _other(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.initial_seed()
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping):
        if value and all(isinstance(each, Tensor) for each in value.values()):
            return write_tensors(value)
        return {key if isinstance(key, (int, float)) else str(key): written(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [written(each) for each in value]
    if isinstance(value, type):
        name = value.__name__
        if vars(nn).get(name) is not value:
            raise ValueError(f"the layer type {name} is not one of torch.nn; name its parameters by a glob")
        return {"layer": name}
    if callable(value):
        return write_function(value)
    raise ValueError(f"a recipe cannot hold a {type(value).__name__}: {value!r:.60}")
