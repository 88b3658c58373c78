"""A model's forward pass as a graph of operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import fx

ASKS = ("item", "_local_scalar_dense")
"""Operations that give the program a value to go by."""


class Graph(NamedTuple):
    """A graph of operations.

    Args:
        graph: of the operations.
        owner: holds the tensors and graphs that it refers to.
        names: of the parameter or buffer that each of its placeholders is; None for an argument.
    """

    graph: fx.Graph
    owner: Any
    names: Sequence[str | None]


def alive_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that an output or a mutation depends on; the rest is dead code."""
    alive: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if (
            node.op != "call_function"
            or node.is_impure()
            or name_of(node.target) in ASKS
            or any(user in alive for user in node.users)
        ):
            alive.add(node)
    return alive


def named_arguments(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operation's arguments by name, with their defaults."""
    schema = getattr(target, "_schema", None)
    arguments = schema.arguments if schema else ()
    defaults = {each.name: each.default_value for each in arguments if each.has_default_value()}
    return {**defaults, **{each.name: value for each, value in zip(arguments, args)}, **kwargs}


def name_of(target: Any) -> str:
    """Return the operation's name without its overload; with the namespace unless that is ``aten``."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", target))
    library, _, name = schema.name.partition("::")
    return str(name if library == "aten" else schema.name)


def path_of(node: fx.Node) -> str:
    """Return the path of the module that a node was recorded in, which may be called several times."""
    return place_of(node).partition("@")[0]  # "@1": the module's second call


def place_of(node: fx.Node) -> str:
    """Return the path of the module that a node was recorded in."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""
