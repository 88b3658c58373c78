"""Entry: one handler of a recipe, its arguments and how it is attached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import StrictStr, WithJsonSchema

from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.recipe.event import Event
from ignite_prune.recipe.models import model_of, needs, piece_and_fields, seeded
from ignite_prune.recipe.recipe_model import RecipeModel
from ignite_prune.recipe.writing import written

OWN = ("name", "event", "structure", "masks")


class Entry(RecipeModel):
    """A handler, and how it is attached.

    Args:
        handler: the arguments that the file gives.
        name: of the handler in ``Attached``, and of what it publishes in the trainer's state; None: the class's own.
        event: when it acts; None: the handler's own default.
        structure: ``trace``: whole units are pruned; ``attach`` is given ``example_inputs=``.
        masks: ``nonzero``: what is zero at the start stays zero.
    """

    handler: Annotated[Any, WithJsonSchema({"x-piece": "handler"})]
    name: StrictStr | None = None
    event: Event | None = None
    structure: Literal["trace"] | None = None
    masks: Literal["nonzero"] | None = None

    @property
    def key(self) -> str:
        """The name in ``Attached``."""
        if self.name is not None:
            return self.name
        return "pruner" if self.handler.piece is PruneHandler else snake(self.handler.piece.__name__)

    def data(self, typed: bool = True) -> dict[str, Any]:
        """Return plain data; ``typed``: with the handler's ``type``."""
        arguments = {name: written(each) for name, each in self.handler.given().items()}
        if isinstance(arguments.get("params"), list):
            arguments["params"] = [as_seed(each) if isinstance(each, dict) else each for each in arguments["params"]]
        arguments = as_seed(arguments)
        own = {name: getattr(self, name) for name in OWN if getattr(self, name) is not None}
        if self.event is not None:
            own["event"] = self.event.data()
        return {**({"type": self.handler.piece.__name__} if typed else {}), **arguments, **own}


def as_seed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as a file has them, whose generator is a ``seed``."""
    return {"seed" if key == "generator" else key: each for key, each in arguments.items()}


def snake(name: str) -> str:
    """Return a class's name as an attribute's: ``GroupLasso`` is ``group_lasso``, ``SRigL`` is ``srigl``."""
    return "".join(
        f"_{each.lower()}" if index and each.isupper() and name[index - 1].islower() and len(name) > 6 else each.lower()
        for index, each in enumerate(name)
    )


def read_entry(value: Any, piece: type | None = None) -> Entry:
    """Return an entry from a mapping that holds the handler's arguments and the entry's own fields.

    Args:
        value: the mapping.
        piece: the handler's class; None: what ``type:`` names.
    """
    if isinstance(value, Entry):
        return value
    if piece is None:
        piece, value = piece_and_fields("handler", value)
    if not isinstance(value, Mapping):
        raise ValueError(f"should be a mapping of the arguments of {piece.__name__}, but given {value!r:.80}")
    own = {key: each for key, each in value.items() if key in OWN}
    for key in ("structure", "masks"):
        if key in own and key not in needs(piece):
            raise ValueError(f"{piece.__name__} has no argument {key}")
    fields = seeded({key: each for key, each in value.items() if key not in OWN})
    return Entry(handler=model_of(piece).model_validate(fields), **own)
