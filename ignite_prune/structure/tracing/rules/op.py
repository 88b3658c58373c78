"""The operation passed to a rule, with which it ties and freezes unit ids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor, fixed
from ignite_prune.structure.tracing.unit_ids import UnitIds

Rule = Callable[..., Any]
"""``rule(op, *args, **kwargs)``: takes the operation's arguments with each tensor replaced by a :class:`TracedTensor`,
and returns the output, a TracedTensor or a list of them."""


class Op:
    """One call of an operation in the graph; rules tie and freeze unit ids through it.

    Args:
        units: the union-find of unit ids.
        name: name of the operation.
        where: path of the module that calls it.
        shapes: shapes of its outputs.
        module: the module that calls it.
        through_norms: whether units may be removed from a dimension that a norm normalises over.
        divides: whether the module divides by some result, so that a mean may be part of a norm written out.
        named: its arguments by name, defaults included.
        function: the operation.
        several: whether it returns a sequence of tensors.
        masks: ``id`` of those arguments that are tensors of bools.
        reads: names of the module's attributes that its forward pass reads.
        prefers_last: which of several sizes to take for a number of units.
    """

    def __init__(
        self,
        units: UnitIds,
        name: str,
        where: str,
        shapes: Sequence[tuple[int, ...]],
        module: nn.Module | None = None,
        through_norms: bool = False,
        divides: bool = False,
        named: Mapping[str, Any] = MappingProxyType({}),
        function: Callable[..., Any] | None = None,
        several: bool = False,
        masks: Collection[int] = (),
        reads: Collection[str] = (),
        prefers_last: bool = False,
    ) -> None:
        self.units, self.name, self.where, self.shapes, self.module = units, name, where, shapes, module
        self.named, self.function, self.several, self._masks = named, function, several, masks
        self.through_norms = through_norms and bool(where)  # the whole model is not a norm
        self.writes_norm = self.through_norms and divides
        self.normalised: Dim | None = None
        """The normalised dimension, if its units may be removed."""
        self._reads, self.prefers_last = sorted(reads), prefers_last
        self.ambiguous = False
        """Whether several sizes may be a number of units, as in ``view(b, t, 3, num_heads, d)`` with 3 heads."""
        self.guessed = False
        """Whether the program does not tell which of several sizes is computed from a width."""
        self.attributes: list[tuple[str, Dim]] = []
        """Attributes of the module that hold the size of a dimension."""
        self.makes: list[Dim] = []
        """Dimensions of weights that become dimensions of the output: they produce units."""
        self.fixed_sizes: list[Dim] = []
        """Dimensions of the output whose sizes are constants in the graph: hard-coded, or computed by the program."""
        self.tried: list[Dim] = []
        """Dimensions that may lose units if a trial shows that the outputs stay the same."""

    @property
    def label(self) -> str:
        """The operation and the module that calls it, for messages."""
        return f"{self.name} in {self.where}" if self.where else self.name

    def holding(self, value: Any) -> list[str]:
        """Return the attributes of the module that hold a value and that its forward pass reads.

        An entry of a list or a tuple is returned as ``"name.0"``.
        """
        held = {} if self.module is None else vars(self.module)
        found = list[str]()
        for name in self._reads:
            its = held.get(name)
            entries = enumerate(its) if isinstance(its, (list, tuple)) else ()
            found += [name] if its == value else [f"{name}.{number}" for number, each in entries if each == value]
        return found

    def written(self, asked: int, dim: Dim) -> None:
        """Record that the graph holds a size as a number: slicing may have to set the attributes that it is from."""
        self.fixed_sizes.append(dim)
        self.attributes += [(name, dim) for name in self.holding(asked)]

    def tie(self, first: Dim, second: Dim) -> None:
        """Tie the indices of two dimensions, one by one."""
        self.units.tie(first, second, f"{self.label} ties it to a fixed size")

    def freeze(self, dim: Dim, why: str) -> None:
        """Freeze the units of a dimension; ``why`` continues a sentence that begins with the operation."""
        self.units.freeze(dim, f"{self.label} {why}")

    def on_trial(self, dim: Dim) -> None:
        """Let the dimension lose units only if a trial shows that the model's outputs are those of the masked one."""
        self.tried.append(dim)

    def open(self, size: int) -> Dim:
        """Return a dimension of a new tensor that has one value along it, whose size the program may compute."""
        if size == 1:
            return fixed(1)
        dim = self.units.new(size)
        self.written(size, dim)
        return dim

    def freeze_all(self, values: Iterable[TracedTensor], why: str) -> list[TracedTensor]:
        """Freeze all dimensions of the tensors, and return outputs whose dimensions are all fixed."""
        for value in values:
            for dim in value.dims:
                self.freeze(dim, why)
        return [TracedTensor.fixed(shape) for shape in self.shapes]

    def is_mask(self, value: TracedTensor) -> bool:
        """Return whether an argument is a tensor of bools."""
        return id(value) in self._masks

    def is_frozen(self, dim: Dim) -> bool:
        """Return whether no unit of a dimension can be removed."""
        return bool(self.units.is_frozen(dim).all())
