"""A model's forward pass as a graph of operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import fx


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
