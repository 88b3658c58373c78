"""Pydantic models of pieces, generated from the pieces' own arguments."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import PlainValidator, TypeAdapter, WithJsonSchema, create_model

from ignite_prune._utils.arguments import near
from ignite_prune.recipe.annotations import Number, field_type, hint_of
from ignite_prune.recipe.epochs import read_count
from ignite_prune.recipe.keep_units import KeepUnits
from ignite_prune.recipe.kinds import base_of, named, pieces, plain
from ignite_prune.recipe.recipe_model import RecipeModel
from ignite_prune.recipe.rules import is_rule, read_rules
from ignite_prune.recipe.values import read_function
from ignite_prune.saliency import as_saliency

FROM_ATTACH = {  # arguments that attach() has, not a file
    "self", "model", "optimizer", "pruner", "structure", "masks", "example_inputs", "ema", "engine", "trainer", "data",
    "loss_fn", "prepare_batch", "calibration", "scaler", "loader", "shrinker", "teacher",
}  # fmt: skip
EITHER = {"teacher": Literal["self"]}  # what a file may say instead
Context = Mapping[str, Any]
NOTHING: Context = MappingProxyType({})


class PieceModel(RecipeModel):
    """The arguments of a piece, checked by their types."""

    piece: ClassVar[type]

    def given(self) -> dict[str, Any]:
        """Return the arguments that were given, in the order of the fields."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    def make(
        self, context: Context = NOTHING, change: Callable[[Any], Any] = lambda value: value, seed: int | None = None
    ) -> Any:
        """Return the piece.

        Args:
            context: what is known of the arguments that no file gives, by name.
            change: applied to each value that is given.
            seed: of a generator that is not given.
        """
        given = {name: change(made(each, context, change)) for name, each in self.given().items()}
        needed = {name: context[name] for name in needs(self.piece) if name in context and name not in given}
        if seed is not None and "generator" in type(self).model_fields and given.get("generator") is None:
            given["generator"] = torch.Generator().manual_seed(seed)
        return self.piece(**needed, **given)


def made(value: Any, context: Context, change: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return a value with the pieces in it that are made late."""
    if isinstance(value, PieceModel):
        return value.make(context, change)
    if isinstance(value, dict):
        return {key: made(each, context, change) for key, each in value.items()}
    if isinstance(value, list):
        return [made(each, context, change) for each in value]
    return value


@cache
def needs(piece: type) -> tuple[str, ...]:
    """Return the arguments of a piece that no file gives."""
    return () if dataclasses.is_dataclass(piece) else tuple(name for name in _signature(piece) if name in FROM_ATTACH)


def is_late(piece: type) -> bool:
    """Return whether a piece is created at each ``attach``, because it needs the model or is stateful."""
    return bool(needs(piece)) or not dataclasses.is_dataclass(piece)


_RULES = {"description": "names or globs, {layer: Conv2d}, or groups {params: ..., settings}"}


@cache
def model_of(piece: type) -> type[PieceModel]:
    """Return the model of a piece's arguments."""
    fields = {name: _field(piece, parameter, owner) for name, (parameter, owner) in arguments(piece).items()}
    base = type(f"{piece.__name__}Base", (PieceModel,), {"piece": piece, "__module__": __name__, "__annotations__": {}})
    make: Any = create_model
    made_of: type[PieceModel] = make(piece.__name__, __base__=base, **fields)
    made_of.__doc__ = (piece.__doc__ or "").split("\n")[0]
    return made_of


def arguments(piece: type) -> dict[str, tuple[inspect.Parameter, type]]:
    """Return the arguments that a file gives, each with the class whose constructor has it.

    Where a constructor passes further keywords on (``**settings``), those of the class above it are arguments too.
    """
    return {name: each for name, each in _signature(piece).items() if name not in needs(piece) or name in EITHER}


@cache
def _signature(piece: type) -> dict[str, tuple[inspect.Parameter, type]]:
    if dataclasses.is_dataclass(piece):
        return {
            name: (parameter, _owner(piece, name)) for name, parameter in inspect.signature(piece).parameters.items()
        }
    found: dict[str, tuple[inspect.Parameter, type]] = {}
    for owner in piece.__mro__:
        init = vars(owner).get("__init__")
        if init is None:
            continue
        parameters = inspect.signature(init).parameters
        passes_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        for name, parameter in parameters.items():
            if parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
                found.setdefault(name, (parameter, owner))
        if not passes_on:
            break
    return found


def _owner(piece: type, name: str) -> type:
    return next(each for each in piece.__mro__ if name in vars(each).get("__annotations__", {}))


def _field(piece: type, parameter: inspect.Parameter, owner: type) -> tuple[Any, Any]:
    if parameter.name in EITHER and parameter.name in needs(piece):
        return (EITHER[parameter.name], None)
    hint = hint_of(owner, parameter.annotation)
    kind = field_type(hint, read_piece, read_record)
    if hint in (int, int | None) and issubclass(piece, base_of("handler")):
        kind = Annotated[Any, PlainValidator(read_count), WithJsonSchema({"x-count": True})]
    if hint is Any and parameter.name in ("params", "exclude"):
        read = partial(read_params, piece) if parameter.name == "params" else read_rules
        kind = Annotated[Any, PlainValidator(read), WithJsonSchema(_RULES)]
    return (kind, ... if parameter.default is inspect.Parameter.empty else parameter.default)


def read_piece(kind: str, value: Any) -> Any:
    """Return a piece from what a file says of it.

    Args:
        kind: one of :data:`~.kinds.KINDS`.
        value: its name (``taylor``; of a saliency also a function, ``module:name``),
            ``{type: Taylor, squared: true}``, ``{taylor: {squared: true}}``, Hydra's
            ``{_target_: ignite_prune.saliency.Taylor, squared: true}``, or the piece itself.

    Raises:
        ValueError: there is no such piece, or an argument is wrong; pydantic adds where.
    """
    if isinstance(value, base_of(kind)) or (isinstance(value, PieceModel) and issubclass(value.piece, base_of(kind))):
        return value
    if kind == "saliency" and (callable(value) or (isinstance(value, str) and ":" in value)):
        return as_saliency(read_function(value) or value)
    piece, fields = piece_and_fields(kind, value)
    model = model_of(piece).model_validate(fields)
    return model if is_late(model.piece) else _checked(model)


def _checked(model: PieceModel) -> Any:
    """Return the piece of a model; its own errors are those of the file."""
    try:
        return model.make()
    except TypeError as error:
        raise ValueError(str(error)) from None


def piece_and_fields(kind: str, value: Any) -> tuple[type, Mapping[str, Any]]:
    """Return the class that a value names, and the arguments that it gives; see :func:`read_piece`."""
    name, fields = _name_and_fields(kind, value)
    return named(kind, name), fields


def _name_and_fields(kind: str, value: Any) -> tuple[Any, Mapping[str, Any]]:
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping):
        for key in ("type", "_target_"):
            if key in value:
                return value[key], {name: each for name, each in value.items() if name != key}
        if len(value) == 1:
            (name, fields), known = next(iter(value.items())), map(plain, pieces(kind))
            if plain(str(name)) in known and (fields is None or isinstance(fields, Mapping)):
                return name, fields or {}
    raise ValueError(
        f"should be the name of a {kind}, or a mapping with type: and its arguments, but given {value!r:.80}; "
        f"{near('', list(pieces(kind)))}"
    )


def read_record(records: tuple[type, ...], value: Any) -> Any:
    """Return one of some dataclasses from its fields, with ``type:`` where there are several to choose from."""
    if isinstance(value, records) or (isinstance(value, PieceModel) and value.piece in records):
        return value
    by_name = {plain(each.__name__): each for each in records}
    fields = {} if isinstance(value, str) else value
    name = value if isinstance(value, str) else value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(fields, Mapping) or (name is None and len(records) > 1):
        raise ValueError(f"should have type: {' | '.join(e.__name__ for e in records)}, but given {value!r:.80}")
    record = records[0] if name is None else by_name.get(plain(str(name)))
    if record is None:
        raise ValueError(f"there is no {name!r}; {near(str(name), [each.__name__ for each in records])}")
    model = model_of(record).model_validate({key: each for key, each in fields.items() if key != "type"})
    return model if is_late(record) else _checked(model)


def read_params(piece: type, value: Any) -> Any:
    """Return rules, or groups with settings: a list of ``{params: ..., settings}``, or ``{rule: settings}``."""
    if isinstance(value, Mapping) and not is_rule(value):
        value = [{"params": rule, **_settings(rule, each)} for rule, each in value.items()]
    if isinstance(value, (list, tuple)) and any(isinstance(each, Mapping) and "params" in each for each in value):
        field: Any = Annotated[Any, PlainValidator(partial(_read_group, piece))]
        return TypeAdapter(list[field]).validate_python(list(value))
    return read_rules(value)


def _settings(rule: Any, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"the settings of {rule!r} should be a mapping, but given {value!r:.80}")
    return value


def _read_group(piece: type, value: Any) -> dict[str, Any]:
    model = group_model(piece).model_validate(seeded(value))
    return {name: getattr(model, name) for name in type(model).model_fields if name in model.model_fields_set}


@cache
def group_model(piece: type) -> type[RecipeModel]:
    """Return the model of a parameter group: the rules, and any setting of the handler."""
    fields: dict[str, Any] = {
        name: (_field(piece, parameter, owner)[0], None)
        for name, (parameter, owner) in arguments(piece).items()
        if name != "params"
    }
    fields = {
        "params": (Annotated[Any, PlainValidator(read_rules)], ...),
        "sparsity": (Number, None),
        "keep": (KeepUnits, None),
        **fields,
    }
    return create_model(f"{piece.__name__}Group", __base__=RecipeModel, **fields)


def seeded(value: Any) -> Any:
    """Return a mapping whose ``seed`` is named ``generator``, as the argument is."""
    if isinstance(value, Mapping) and "seed" in value and "generator" not in value:
        return {"generator" if key == "seed" else key: each for key, each in value.items()}
    return value
