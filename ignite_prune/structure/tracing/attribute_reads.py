"""Which attributes a forward pass reads: sizes that a program keeps in ``self.num_heads`` and the like.

In an exported graph such a size is a number. If slicing changes the size, it has to update the attribute, so the
tracing has to know which attribute the number is from: one that holds the number, of the module whose ``forward`` calls
the operation, and that this forward pass reads. Whether that is right is left to the trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from torch import nn

Reads = Mapping[str, Set[str]]
"""Names of the attributes that are read, by path of the module."""

_OTHERS = ("torch.", "ignite_prune.")  # classes whose width attributes are known


def record_reads(model: nn.Module) -> Reads:
    """Make the modules of a model record, in place, which attributes that hold sizes are read from now on."""
    reads: dict[str, set[str]] = {}
    for path, module in model.named_modules():
        sizes = frozenset(name for name, value in vars(module).items() if _is_size(value))
        if sizes and not type(module).__module__.startswith(_OTHERS):
            reads[path] = set()
            _record(module, sizes, reads[path])
    return reads


def _is_size(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(type(each) is int for each in value)
    return type(value) is int


def _record(module: nn.Module, sizes: frozenset[str], read: set[str]) -> None:
    kind = type(module)

    def getattribute(self: nn.Module, name: str) -> Any:
        if name in sizes:
            read.add(name)
        return kind.__getattribute__(self, name)

    module.__class__ = type(kind.__name__, (kind,), {"__getattribute__": getattribute, "__module__": kind.__module__})


def unit_rank(name: str) -> int:
    """Return how likely an attribute's name is that of a number of units, and not of the size of each, from 0 to 2."""
    name = name.lower()
    if any(part in name for part in ("dim", "size", "channels", "width", "features", "per_head", "d_head")):
        return 0
    return 2 if "head" in name else 1
