"""The JSON schema of a recipe, with which editors complete and check it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.recipe.entry import Entry, snake
from ignite_prune.recipe.kinds import pieces
from ignite_prune.recipe.models import model_of, needs
from ignite_prune.recipe.recipe import Recipe

_COUNT = {
    "anyOf": [
        {"type": "integer"},
        {"type": "null"},
        {"type": "object", "properties": {"epochs": {"type": "number"}}, "required": ["epochs"]},
    ]
}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe.

    Example:
        >>> from ignite_prune import recipe
        >>> schema = recipe.json_schema()
        >>> schema["properties"]["saliency"], "Taylor" in schema["$defs"]["saliency"]["anyOf"][0]["enum"]
        ({'$ref': '#/$defs/saliency'}, True)
    """
    return _Schema().result()


class _Schema:
    """Definitions that are gathered while the schema is made."""

    def __init__(self) -> None:
        self.defs: dict[str, Any] = {}

    def result(self) -> dict[str, Any]:
        top = self.filled(Recipe.model_json_schema())
        pruner = self.entry(PruneHandler)["properties"]  # the fields of prune may stand at the top
        top["properties"] = {**top["properties"], **{k: v for k, v in pruner.items() if k not in top["properties"]}}
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": self.defs}

    def filled(self, node: Any) -> Any:
        """Return a schema in which the places of pieces, records and handlers are references."""
        if isinstance(node, list):
            return [self.filled(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "x-piece" in node:
            return self.kind(node["x-piece"])
        if "x-record" in node:
            return {"anyOf": [self.record(each) for each in node["x-record"]]}
        if "x-entry" in node:
            name = node["x-entry"]
            found = [
                self.entry(each) for each in ([PruneHandler] if name == "PruneHandler" else pieces("handler").values())
            ]
            return found[0] if len(found) == 1 else {"anyOf": found}
        if "x-count" in node:
            return _COUNT
        if node.get("$ref") == "#/$defs/Event":
            return {"anyOf": [{"type": "string"}, node]}
        self.defs |= {name: self.filled(each) for name, each in node.get("$defs", {}).items()}
        return {key: self.filled(each) for key, each in node.items() if key != "$defs"}

    def kind(self, kind: str) -> dict[str, Any]:
        """Return a reference to the definition of a kind of pieces."""
        if kind not in self.defs:
            self.defs[kind] = {}  # a piece may hold one of its own kind
            names = [form for name in pieces(kind) for form in dict.fromkeys((name, snake(name)))]
            short: list[Any] = [{"enum": names}]
            if kind == "saliency":
                short.append({"type": "string", "pattern": "^[\\w.]+:\\w+$"})
            self.defs[kind] = {"anyOf": [*short, *(self.typed(each) for each in pieces(kind).values())]}
        return {"$ref": f"#/$defs/{kind}"}

    def typed(self, piece: type) -> dict[str, Any]:
        """Return the schema of a piece with its ``type``."""
        found: dict[str, Any] = self.filled(model_of(piece).model_json_schema())
        names = list(dict.fromkeys((piece.__name__, snake(piece.__name__))))
        found["properties"] = {"type": {"enum": names}, **found.get("properties", {})}
        found["required"] = ["type", *found.get("required", [])]
        return found

    def record(self, path: str) -> dict[str, Any]:
        """Return the schema of a dataclass that pieces hold; its ``type`` may be left out."""
        module, _, name = path.partition(":")
        found = self.typed(getattr(import_module(module), name))
        found["required"] = [each for each in found["required"] if each != "type"]
        return {"anyOf": [{"enum": [name, snake(name)]}, found]}

    def entry(self, piece: type) -> dict[str, Any]:
        """Return the schema of a handler with what says how it is attached."""
        found = self.typed(piece)
        own = self.filled(Entry.model_json_schema())["properties"]
        own = {name: each for name, each in own.items() if name in ("name", "event") or name in needs(piece)}
        if "generator" in found["properties"]:
            own["seed"] = found["properties"].pop("generator")
        found["properties"] |= own
        if piece is PruneHandler:
            del found["properties"]["type"]
            found["required"] = [each for each in found["required"] if each != "type"]
        return found
