"""The kinds of pieces that a recipe writes, each with the room that holds them.

A piece is written by its class's name. Which there are is what the public ``__all__`` of the rooms says, so that a new
piece can be written without a line here.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from ignite_prune._utils.arguments import near


class PieceKind(NamedTuple):
    """A kind of pieces: where they are, and the class that all of them derive from."""

    room: str
    base: str


KINDS = {
    "saliency": PieceKind("saliency", "Saliency"),
    "pattern": PieceKind("pattern", "Pattern"),
    "allocation": PieceKind("allocation", "Allocation"),
    "schedule": PieceKind("schedule", "Schedule"),
    "repair": PieceKind("repair", "Repair"),
    "target": PieceKind("structure", "Cost"),
    "gate": PieceKind("regularise", "Gate"),
    "drop_fraction": PieceKind("regrow", "DropFraction"),
    "sparsifier": PieceKind("activation", "Sparsifier"),
    "handler": PieceKind("handlers.base", "BaseHandler"),
}
_NOT_WRITTEN = ("Bound", "PruneHandler", "LotteryTicket", "PruningEngine")  # of one update; prune; rounds


def plain(name: str) -> str:
    """Return a name without case and separators: ``snip_momentum`` is SNIPMomentum."""
    return name.replace("_", "").replace("-", "").lower()


@cache
def base_of(kind: str) -> type:
    """Return the class that all pieces of a kind derive from."""
    found: type = getattr(import_module(f"ignite_prune.{KINDS[kind].room}"), KINDS[kind].base)
    return found


@cache
def pieces(kind: str) -> dict[str, type]:
    """Return the concrete classes of a kind by name, in order of names."""
    room, base = import_module(f"ignite_prune.{KINDS[kind].room.split('.')[0]}"), base_of(kind)
    found = [getattr(room, name) for name in room.__all__ if name not in _NOT_WRITTEN]
    return {
        each.__name__: each
        for each in sorted((e for e in found if isinstance(e, type)), key=lambda e: e.__name__)
        if issubclass(each, base) and not inspect.isabstract(each)
    }


def named(kind: str, name: Any) -> type:
    """Return the piece of a name, in any case and with or without ``_``.

    Raises:
        ValueError: there is none; near matches are named.
    """
    known = pieces(kind)
    if isinstance(name, str):
        for each, piece in known.items():
            if plain(each) == plain(name.rpartition(".")[2] if name.startswith("ignite_prune.") else name):
                return piece
    raise ValueError(f"there is no {kind} {name!r}; {_near(name, list(known))}")


def _near(name: Any, known: list[str]) -> str:
    by_plain = {plain(each): each for each in known}
    close = near(plain(str(name)), list(by_plain))
    for each in sorted(by_plain, key=len, reverse=True):
        close = close.replace(repr(each), repr(by_plain[each]))
    return close


def kind_of_base(base: Any) -> str | None:
    """Return the kind whose pieces derive from a class, or whose base it is."""
    if not isinstance(base, type):
        return None
    return next((kind for kind in KINDS if kind != "handler" and issubclass(base, base_of(kind))), None)


def is_record(given: Any) -> bool:
    """Return whether a class is a frozen dataclass that pieces hold, such as ``Memory``."""
    return isinstance(given, type) and dataclasses.is_dataclass(given)
