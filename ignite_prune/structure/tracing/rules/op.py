"""The operation that a rule looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from ignite_prune.structure.slicing.module_attributes import written
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor
from ignite_prune.structure.tracing.unit_ids import UnitIds

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
"""Norms whose units may go by request."""
Rule = Callable[..., Any]
"""``rule(op, *args, **kwargs)``: the arguments are the operation's, with a :class:`TracedTensor` for each tensor; it
returns the output, a TracedTensor or a list of them."""


class Op:
    """The operation that runs: what a rule ties and freezes by it.

    Args:
        units: the ids.
        name: of the operation.
        where: path of the module that calls it.
        shapes: of its outputs.
        module: the one that calls it.
        through_norms: whether what a norm goes over may go.
        named: its arguments by their names.
    """

    def __init__(
        self,
        units: UnitIds,
        name: str,
        where: str,
        shapes: Sequence[tuple[int, ...]],
        module: nn.Module | None = None,
        through_norms: bool = False,
        named: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.units, self.name, self.where, self.shapes, self.module = units, name, where, shapes, module
        self.named = named
        self.through_norms = through_norms and isinstance(module, NORMS)
        self.normalised: Dim | None = None
        """A dimension that it normalises over, where its units may go all the same."""
        self.makes: list[Dim] = []
        """Dimensions of weights that its output has: where units are made."""
        self.fixed_sizes: list[Dim] = []
        """Dimensions of its output whose sizes are numbers in the graph: written in the program, or computed by it."""

    @property
    def told(self) -> str:
        """The operation and where it stands, for people."""
        return f"{self.name} in {self.where}" if self.where else self.name

    def written(self, sizes: Sequence[int]) -> int | None:
        """Return which of some sizes stands in an attribute that slicing writes anew, if one does."""
        return None if self.module is None else written(self.module, self.name, sizes)

    def tie(self, first: Dim, second: Dim) -> None:
        """Let indices of two dimensions go together."""
        self.units.tie(first, second, f"{self.told} ties it to a size that is given")

    def freeze(self, dim: Dim, why: str) -> None:
        """Let the indices of a dimension stay."""
        self.units.freeze(dim, f"{self.told} {why}")

    def freeze_all(self, values: Iterable[TracedTensor], why: str) -> list[TracedTensor]:
        """Freeze tensors whole; return outputs of which nothing can go."""
        for value in values:
            for dim in value.dims:
                self.freeze(dim, why)
        return [TracedTensor.fixed(shape) for shape in self.shapes]

    def is_frozen(self, dim: Dim) -> bool:
        """Whether nothing can go from a dimension."""
        return bool(self.units.is_frozen(dim).all())
