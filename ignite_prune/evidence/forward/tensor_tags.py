"""Tags on the tensors of one forward pass, dropped with the tensor."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Weight:
    """A selected weight, or a part of it."""

    name: str
    parameter: nn.Parameter
    turned: bool = False  # whether its two dims are swapped
    rows: tuple[int, int] | None = None  # (first, last + 1); None for all


class TensorTag:
    """What is known of one tensor."""

    __slots__ = ("active", "flow", "path", "ref", "weight")

    def __init__(self, tensor: Tensor, weight: Weight | None = None) -> None:
        self.ref = weakref.ref(tensor)
        self.weight = weight  # the selected weight that it is, or is a part or transpose of
        self.path: Any = None  # the UnitPath that it belongs to
        self.active = False  # whether an activation function was applied on that path
        self.flow: Any = None  # its source, as AttentionTracker follows it


class TensorTags:
    """Tags by tensor identity. A weak reference distinguishes a freed tensor from a new one with the same id."""

    def __init__(self) -> None:
        self._weights: dict[int, TensorTag] = {}
        self.by_id: dict[int, TensorTag] = {}

    def add_weights(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Tag selected weights; :meth:`clear` keeps these tags."""
        self._weights |= {id(p): TensorTag(p, Weight(name, p)) for name, p in parameters.items()}
        self.by_id |= self._weights

    def of(self, tensor: Any) -> TensorTag | None:
        """Return a tensor's tag; None for another tensor or object."""
        tag = self.by_id.get(id(tensor))
        return tag if tag is not None and tag.ref() is tensor else None

    def at(self, tensor: Tensor) -> TensorTag:
        """Return a tensor's tag, a new one if it has none."""
        tag = self.of(tensor)
        if tag is None:
            tag = self.by_id[id(tensor)] = TensorTag(tensor)
        return tag

    def drop(self, tensor: Tensor) -> None:
        """Forget a tensor."""
        self.by_id.pop(id(tensor), None)

    def clear(self) -> None:
        """Forget everything but the selected weights."""
        self.by_id.clear()
        self.by_id |= self._weights
