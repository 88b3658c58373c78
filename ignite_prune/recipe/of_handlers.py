"""Handlers to the data of their recipe."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ignite_prune._utils.recorded_arguments import RecordedArguments, arguments_of
from ignite_prune.handlers.base import BaseHandler
from ignite_prune.handlers.lottery.pruning_engine import PruningEngine
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.handlers.sparse_training.base import MaskedHandler
from ignite_prune.recipe.attached import Attached
from ignite_prune.recipe.event import unscaled
from ignite_prune.recipe.of_pruner import data_of as data_of_pruner
from ignite_prune.recipe.of_pruner import event_of
from ignite_prune.recipe.writing import given_by_file, written


def data_of(given: Any, event: Any = None) -> dict[str, Any]:
    """Return what ``recipe.load`` takes; see :meth:`.Recipe.of`."""
    engine, rounds, handlers = _engine_of(given), getattr(given, "rounds", None), list(_every(given))
    if event is not None and len(handlers) > 1:
        raise ValueError("event= is of a single handler, but several were given")
    pruners = [each for each in handlers if not isinstance(each, RecordedArguments)]
    if len(pruners) > 1:
        raise ValueError("a recipe has one PruneHandler, but several were given; write one recipe for each")
    found: dict[str, Any] = {}
    for pruner in pruners:
        found = data_of_pruner(_checked_pruner(pruner), event, attached=engine is None)
        found["prune"] |= _name_of(pruner, PruneHandler)
    if engine is not None:
        found["rounds"] = _rounds(engine, rounds)
    others = [_data(each, event) for each in handlers if isinstance(each, RecordedArguments)]
    return found | ({"handlers": others} if others else {})


def _every(given: Any) -> Iterator[BaseHandler]:
    """Yield all handlers, those that another one was made with ahead of it; each once."""
    seen: set[int] = set()
    listed = [given]
    if isinstance(given, PruningEngine):
        listed = [given.pruner]
    elif isinstance(given, Mapping):
        listed = list(given.values())
    elif isinstance(given, Sequence) and not isinstance(given, str):
        listed = list(given)
    for each in listed:
        if not isinstance(each, BaseHandler) or not isinstance(each, (PruneHandler, RecordedArguments)):
            raise TypeError(
                "Argument handlers should be a PruneHandler or another handler, several of them, what Recipe.attach() "
                f"returned, or a pruning engine, but given {type(each)}"
            )
        parts = arguments_of(each) if isinstance(each, RecordedArguments) else {}
        for handler in (parts.get("pruner"), parts.get("shrinker"), each):
            if isinstance(handler, BaseHandler) and id(handler) not in seen:
                seen.add(id(handler))
                yield handler


def _engine_of(given: Any) -> PruningEngine | None:
    if isinstance(given, Attached):
        return given.engine if given.rounds else None
    return given if isinstance(given, PruningEngine) else None


def _rounds(engine: PruningEngine, rounds: int | None) -> dict[str, Any]:
    rounds = rounds or engine.state.max_epochs
    if not rounds:
        raise ValueError(
            "a recipe of rounds holds their number, which a pruning engine knows once it ran: "
            "engine.run(max_epochs=...)"
        )
    rewind = None if engine.snapshot is None else engine.snapshot.rewind
    settings = {"rewind": rewind, **engine.settings}
    return {"rounds": rounds, **{name: written(each) for name, each in settings.items() if each}}


def _checked_pruner(pruner: BaseHandler) -> PruneHandler:
    """Return a PruneHandler, or an object of a subclass, whose settings are those that it gave its base class."""
    if not isinstance(pruner, PruneHandler):
        raise TypeError(f"A recipe has no entry for {type(pruner)}: it holds the handlers of ignite_prune.handlers")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own, given = (inspect.signature(each).parameters for each in (type(pruner), PruneHandler))
    required = [name for name, each in own.items() if each.default is each.empty and each.kind not in variadic]
    if more := [name for name in required if name not in given]:
        raise TypeError(
            f"A recipe holds what a PruneHandler is made with, but {type(pruner)} also requires {', '.join(more)}, "
            "which would be lost. Give these arguments defaults, or give a PruneHandler"
        )
    return pruner


def _data(handler: BaseHandler, event: Any) -> dict[str, Any]:
    """Return an entry of ``handlers``."""
    assert isinstance(handler, RecordedArguments)  # the only ones that data_of() gives
    attachment = handler._attachment
    if event is None and attachment is not None and not isinstance(handler, MaskedHandler):  # which has its own
        event = event_of(attachment.events)
    found = {"type": type(handler).__name__, **given_by_file(handler)}
    if isinstance(event, dict) and event.get("unit") == "epochs":
        found |= {name: written(unscaled(each)) for name, each in arguments_of(handler).items() if name in found}
    if arguments_of(handler).get("structure") is not None:
        found["structure"] = "trace"
    return {**found, **({} if event is None else {"event": event}), **_name_of(handler, type(handler))}


def _name_of(handler: BaseHandler, kind: type[BaseHandler]) -> dict[str, Any]:
    """Return the name that a handler publishes under, if it is not its default."""
    attachment = handler._attachment
    if attachment is None:
        return {}
    default = inspect.signature(kind.attach).parameters["name"].default
    return {} if default in (None, attachment.name) else {"name": attachment.name}
