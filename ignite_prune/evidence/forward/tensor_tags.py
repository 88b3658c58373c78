"""What is known of the tensors of one forward pass, by identity, for as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Weight:
    """A selected weight, or what a transpose or a split made of it.

    Attributes:
        name: the parameter's name.
        parameter: the parameter.
        turned: whether its two dims stand the other way round.
        rows: which rows (first, last + 1) of the parameter it is; None for all.
    """

    name: str
    parameter: nn.Parameter
    turned: bool = False
    rows: tuple[int, int] | None = None


class Note:
    """What is known of one tensor.

    Attributes:
        weight: the selected weight that it is, or a part or transpose of.
        chain: the chain of ``points`` that it belongs to, and ``active`` whether an activation lies behind it.
        flow: what ``attention`` knows of where it comes from.
    """

    __slots__ = ("active", "chain", "flow", "ref", "weight")

    def __init__(self, tensor: Tensor) -> None:
        self.ref = weakref.ref(tensor)
        self.weight: Weight | None = None
        self.chain: Any = None
        self.active = False
        self.flow: Any = None


class Notes:
    """Notes by tensor; a tensor that has died is forgotten, and its id may be another's.

    Args:
        parameters: the selected weights by name, noted for good.

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> notes = Notes({"w": weight})
        >>> notes.of(weight).weight.name, notes.of(torch.zeros(2))
        ('w', None)
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._fixed: dict[int, Note] = {}
        for name, parameter in parameters.items():
            note = self._fixed[id(parameter)] = Note(parameter)
            note.weight = Weight(name, parameter)
        self.by_id = dict(self._fixed)

    def of(self, tensor: Tensor) -> Note | None:
        """Return what is known of a tensor."""
        note = self.by_id.get(id(tensor))
        return note if note is not None and note.ref() is tensor else None

    def at(self, tensor: Tensor) -> Note:
        """Return a tensor's note, a new one if it has none."""
        note = self.of(tensor)
        if note is None:
            note = self.by_id[id(tensor)] = Note(tensor)
        return note

    def clear(self) -> None:
        """Forget everything but the selected weights."""
        self.by_id.clear()
        self.by_id.update(self._fixed)
