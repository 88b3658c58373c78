"""Tags on the tensors of one forward pass, dropped with the tensor."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Weight:
    """A selected weight, or a transpose or a split of one.

    Attributes:
        name: the parameter's name.
        parameter: the parameter.
        turned: whether its two dims are swapped.
        rows: its rows (first, last + 1) of the parameter; None for all.
    """

    name: str
    parameter: nn.Parameter
    turned: bool = False
    rows: tuple[int, int] | None = None


class TensorTag:
    """What is known of one tensor.

    Attributes:
        weight: the selected weight that it is, or is a part or transpose of.
        path: the :class:`.UnitPath` that it belongs to.
        active: whether an activation function was applied on that path.
        flow: its source, as :class:`.AttentionTracker` follows it.
    """

    __slots__ = ("active", "flow", "path", "ref", "weight")

    def __init__(self, tensor: Tensor) -> None:
        self.ref = weakref.ref(tensor)
        self.weight: Weight | None = None
        self.path: Any = None
        self.active = False
        self.flow: Any = None


class TensorTags:
    """Tags by tensor identity. A weak reference tells a dead tensor from a new one with the same id.

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> tags = TensorTags()
        >>> tags.add_weights({"w": weight})
        >>> tags.of(weight).weight.name, tags.of(torch.zeros(2))
        ('w', None)
    """

    def __init__(self) -> None:
        self._weights: dict[int, TensorTag] = {}
        self.by_id: dict[int, TensorTag] = {}

    def add_weights(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Tag selected weights; :meth:`clear` keeps these tags."""
        for name, parameter in parameters.items():
            tag = self._weights[id(parameter)] = TensorTag(parameter)
            tag.weight = Weight(name, parameter)
        self.by_id.update(self._weights)

    def of(self, tensor: Tensor) -> TensorTag | None:
        """Return a tensor's tag, or None."""
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
        self.by_id.update(self._weights)
