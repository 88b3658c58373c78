"""Converts annotations of pieces' arguments to fields of pydantic models.

The annotation of an argument says what a file may hold for it: a number for a ``float``, a piece by name for a
``Schedule``, the seed for a ``torch.Generator``, the name of a function for a callable. Numbers, bools and strings are
strict, as a file has them.
"""

from __future__ import annotations

import collections.abc
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Union

import torch
from pydantic import PlainValidator, StrictBool, StrictFloat, StrictInt, StrictStr, WithJsonSchema
from torch import Tensor

from ignite_prune.recipe.kinds import is_record, kind_of_base
from ignite_prune.recipe.values import read_dtype, read_function, read_generator, read_number_key, read_tensors
from ignite_prune.structure import Cost, Structure

Number = StrictInt | StrictFloat
_SIMPLE: dict[Any, Any] = {
    float: Number,
    int: StrictInt,
    bool: StrictBool,
    str: StrictStr,
    type(None): None,
    torch.Generator: Annotated[Any, PlainValidator(read_generator), WithJsonSchema({"type": "integer"})],
    torch.dtype: Annotated[Any, PlainValidator(read_dtype), WithJsonSchema({"type": "string"})],
    Any: Any,
    typing.Hashable: StrictStr,
}
_KEY = Annotated[Any, PlainValidator(read_number_key), WithJsonSchema({"type": "number"})]
_FUNCTION = Annotated[Any, PlainValidator(read_function), WithJsonSchema({"type": "string"})]
_TENSORS = Annotated[Any, PlainValidator(read_tensors), WithJsonSchema({"type": "object"})]
_SPECIAL = {"Tensor": Tensor, "Mapping": Mapping, "Sequence": Sequence, "Callable": Callable, "Any": Any}
_SPECIAL |= {"Cost": Cost, "Structure": Structure}


def piece_field(kind: str, read: Callable[[str, Any], Any]) -> Any:
    """Return the annotation of a field that holds a piece of a kind."""
    return Annotated[Any, PlainValidator(partial(read, kind)), WithJsonSchema({"x-piece": kind})]


def hint_of(owner: Any, annotation: Any) -> Any:
    """Return an annotation, evaluated in the module of its class; Any if it cannot be evaluated."""
    if not isinstance(annotation, str):
        return annotation
    space = {**_SPECIAL, **vars(sys.modules[owner.__module__])}
    try:
        return eval(annotation, space)  # of this package's own source, never of a recipe
    except NameError:
        return Any


def field_type(hint: Any, read: Callable[[str, Any], Any], read_record: Callable[[tuple[type, ...], Any], Any]) -> Any:
    """Return the annotation of a model's field for an argument.

    Args:
        hint: the argument's annotation.
        read: reads a piece of a kind.
        read_record: reads one of some dataclasses.
    """
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    kind = kind_of_base(hint)
    if kind is not None:
        return piece_field(kind, read)
    if is_record(hint):
        return _record_field((hint,), read_record)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _union(parts, read, read_record)
    if origin is Literal:
        return hint
    if origin is tuple and len(parts) == 2 and parts[1] is ...:
        return tuple[field_type(parts[0], read, read_record), ...]  # type: ignore[misc]
    if origin is collections.abc.Mapping and parts[1] is Tensor:
        return _TENSORS
    if origin is collections.abc.Mapping and parts[0] is float:
        return dict[_KEY, field_type(parts[1], read, read_record)]  # type: ignore[misc]
    if origin is collections.abc.Mapping:
        return dict[field_type(parts[0], read, read_record), field_type(parts[1], read, read_record)]  # type: ignore[misc]
    if origin is collections.abc.Sequence:
        return list[field_type(parts[0], read, read_record)]  # type: ignore[misc]
    if origin is collections.abc.Callable:
        return _FUNCTION
    if inspect.isclass(hint) and issubclass(hint, torch.nn.Module):
        return _record_field((hint,), read_record)
    return Any


def _record_field(records: tuple[type, ...], read_record: Callable[[tuple[type, ...], Any], Any]) -> Any:
    names = [f"{each.__module__}:{each.__name__}" for each in records]
    return Annotated[Any, PlainValidator(partial(read_record, records)), WithJsonSchema({"x-record": names})]


def _union(parts: tuple[Any, ...], read: Any, read_record: Any) -> Any:
    """Return a union in which a piece also takes what a callable is for, and dataclasses are one choice."""
    records = tuple(each for each in parts if is_record(each) and kind_of_base(each) is None)
    if any(kind_of_base(each) for each in parts):
        parts = tuple(each for each in parts if typing.get_origin(each) is not collections.abc.Callable)
    fields = [field_type(each, read, read_record) for each in parts if each not in records]
    if records:
        fields.append(_record_field(records, read_record))
    return Union[tuple(fields)]  # noqa: UP007
