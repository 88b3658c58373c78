"""Mappings of a state_dict as lists of pairs, which ``torch.distributed.checkpoint`` saves and loads as one object.

It flattens nested mappings, and lists that hold tensors or mappings, to one entry per value; empty ones have none. It
loads the entries that the state_dict of the object being loaded has, and drops all others: a mapping that is empty or
has other keys in a new handler would be lost. A list of tuples is not flattened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_pairs(mapping: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return a mapping's keys and values as pairs.

    Example:
        >>> as_pairs({"weight": 1})
        [('weight', 1)]
    """
    return list(mapping.items())


def from_pairs(value: Any) -> Any:
    """Return the mapping that :func:`as_pairs` was called with; what is no list of pairs is returned as it is.

    Example:
        >>> from_pairs([("weight", 1)]), from_pairs({"weight": 1})
        ({'weight': 1}, {'weight': 1})
    """
    pairs = isinstance(value, list) and all(isinstance(each, tuple) and len(each) == 2 for each in value)
    return dict(value) if pairs and all(isinstance(key, (str, int)) for key, _ in value) else value
