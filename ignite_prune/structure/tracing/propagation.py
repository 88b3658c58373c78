"""Propagation of unit ids through the nodes of a graph, and of the graphs inside it.

There is one rule per operation (``rules/``). An operation without one is handled by the first of these that applies:
torch's tag says that it is elementwise; torch can express it by other operations, whose rules are then followed; all
dimensions of its inputs are frozen. Too little is pruned then, never something wrong.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ignite_prune.structure.tracing.attribute_reads import Reads
from ignite_prune.structure.tracing.graph import alive_nodes, name_of, named_arguments, path_of, place_of
from ignite_prune.structure.tracing.rules import RULES, Op
from ignite_prune.structure.tracing.rules.pointwise import pointwise
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor
from ignite_prune.structure.tracing.unit_ids import TieOnly, UnitIds
from ignite_prune.structure.tracing.work import Product, products

_DEPTH = 4  # of graphs inside graphs
_DIVIDES = ("div", "rsqrt", "sqrt", "reciprocal", "true_divide", "divide")
_WRAPPERS = ("wrap_with_autocast", "wrap_with_set_grad_enabled", "tag_activation_checkpoint", "cond", "hints_wrapper")


@dataclass(frozen=True)
class TracedModel:
    """Result of tracing: the unit ids of a model's tensors, its FLOPs, norms and Dropout modules.

    Args:
        units: the union-find of unit ids.
        held: the ids of each dimension of every parameter and buffer, by name; tied tensors are under every name.
        unknown: operations without a rule, with the path of the module that calls them.
        work: the FLOPs of each operation, and the dimensions whose sizes multiply to them.
        dropped: the dimensions of the inputs of each Dropout module, by its path.
        normalised: with ``through_norms``, the dimension that each norm normalises over, by its path.
        makers: ``id`` of each weight dimension that produces units (output channels).
        fixed_sizes: dimensions whose size is a constant in the graph, with the operation.
        tried: dimensions that may lose units if the outputs of a trial stay the same, with the operation.
        unused: dimensions that the forward pass does not use.
        attributes: dimensions whose size a module holds in an attribute, with its path and name.
        ambiguous: operations in which several sizes may be a number of units.
        same_size: dimensions whose size is a constant in the graph, each with one of a module's inputs of that size.
        guessed: operations in which any of several sizes may be computed from a width.
    """

    units: UnitIds
    held: Mapping[str, tuple[Dim, ...]]
    unknown: list[str] = field(default_factory=list)
    work: list[Product] = field(default_factory=list)
    dropped: dict[str, list[tuple[Dim, ...]]] = field(default_factory=dict)
    normalised: dict[str, Dim] = field(default_factory=dict)
    makers: set[int] = field(default_factory=set)
    fixed_sizes: list[tuple[Dim, str]] = field(default_factory=list)
    tried: list[tuple[Dim, str]] = field(default_factory=list)
    unused: list[Dim] = field(default_factory=list)
    attributes: list[tuple[str, str, Dim]] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)
    same_size: list[tuple[Dim, Dim]] = field(default_factory=list)


class Propagation:
    """Follows unit ids through a graph, and records in a :class:`TracedModel` what the rules report.

    Args:
        traced: what is recorded.
        modules: of the model, by path.
        through_norms: whether units may be removed from a dimension that a norm normalises over.
        reads: the attributes that the forward pass reads.
        last: which of several sizes to take for a number of units.
    """

    def __init__(
        self, traced: TracedModel, modules: Mapping[str, nn.Module], through_norms: bool, reads: Reads, last: bool
    ) -> None:
        self._traced, self._modules, self._through_norms, self._reads = traced, modules, through_norms, reads
        self._last = last
        self._dividing: set[str] = set()  # paths of modules
        self._entering: dict[str, dict[int, Dim]] = {}  # by path of a module, what others have computed
        self._sizes: dict[Any, int] = {}  # by symbol: a number for each size that depends on data

    def run(
        self, graph: fx.Graph, owner: nn.Module, inputs: Sequence[Any], units: UnitIds, where: str = "", depth: int = 0
    ) -> Any:
        """Return the outputs of a graph.

        Args:
            graph: of operations.
            owner: holds the tensors and graphs that it refers to.
            inputs: the values of its placeholders; None for one without units.
            units: the union-find that live operations act on.
            where: path of the module that calls it, for nodes that do not say theirs.
            depth: how many graphs it is inside of.
        """
        values: dict[fx.Node, Any] = {}
        found: Any = None
        alive, given = alive_nodes(graph), iter(inputs)
        self._dividing |= {
            path_of(node) for node in graph.nodes if node.op == "call_function" and name_of(node.target) in _DIVIDES
        }
        for node in graph.nodes:
            if node.op == "placeholder":
                value = next(given)
                values[node] = self._fixed(node.meta.get("val")) if value is None else value
            elif node.op == "call_function":
                mine = units if node in alive else TieOnly(units)
                values[node] = self._called(node, values, mine, place_of(node) or where, depth)
            elif node.op == "output":
                found = fx.map_arg(node.args[0], values.__getitem__)
            else:
                held = operator.attrgetter(str(node.target))(owner)
                values[node] = held if isinstance(held, nn.Module) else self._fixed(held)
        return found

    def _called(self, node: fx.Node, values: Mapping[fx.Node, Any], units: UnitIds, where: str, depth: int) -> Any:
        """Return the outputs of a call."""
        args: Any
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        if node.target is operator.getitem:
            return args[0][args[1]]
        outputs: Any = node.meta.get("val")
        several = isinstance(outputs, (list, tuple))
        shapes = [self._shape(each) for each in (outputs if several else [outputs]) if isinstance(each, Tensor)]
        if not shapes:
            return self._fixed(outputs)
        path = path_of(node) or where.partition("@")[0]
        given = [each for each in node.all_input_nodes if isinstance(values[each], TracedTensor)]
        function: Any = node.target
        op = Op(
            units,
            name_of(node.target),
            where,
            shapes,
            self._modules.get(path),
            self._through_norms,
            path in self._dividing,
            named_arguments(node.target, args, kwargs),
            function,
            several,
            {id(values[each]) for each in given if each.meta["val"].dtype == torch.bool},
            self._reads.get(path, ()),
            self._last,
        )
        self._enter(node, values)
        found = self._by_rule(op, args, kwargs)
        if found is None:
            kinds = {id(values[each]): each.meta["val"].dtype for each in given}
            found = self._by_parts(op, args, kwargs, kinds, depth) if depth < _DEPTH else None
        if found is None:
            self._traced.unknown.append(op.label)
            inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, TracedTensor)]
            every = op.freeze_all(inputs, "is not known")
            found = every if several else every[0]
        self._record(op, path, args, found)
        return found

    def _by_rule(self, op: Op, args: Any, kwargs: Any) -> Any:
        """Return an operation's outputs by its rule; None if there is none, or it does not expect this call."""
        tags = getattr(op.function, "tags", ())
        rule = RULES.get(op.name) or (pointwise if torch.Tag.pointwise in tags else None)
        if rule is None:
            return None
        try:
            found = rule(op, *args, **kwargs)
            _check(op, found)
        except Exception:
            return None
        return found

    def _by_parts(self, op: Op, args: Any, kwargs: Any, kinds: Mapping[int, torch.dtype], depth: int) -> Any:
        """Return an operation's outputs by following the operations that it consists of; None if that fails."""
        try:
            if op.name in _WRAPPERS:
                first = next(k for k, each in enumerate(args) if isinstance(each, fx.GraphModule))
                bodies = [each for each in args if isinstance(each, fx.GraphModule)]
                operands = args[first + len(bodies) :]
                inputs = list(operands[0]) if op.name == "cond" else list(operands)
            else:
                inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, TracedTensor)]
                bodies = [_expanded(op.function, args, kwargs, kinds)]
            found = [self.run(body.graph, body, inputs, op.units, op.where, depth + 1) for body in bodies]
            for other in found[1:]:  # branches
                for one, its in zip(tree_leaves(found[0]), tree_leaves(other)):
                    for a, b in zip(one.dims, its.dims):
                        op.tie(a, b)
            outputs = list(found[0]) if isinstance(found[0], (list, tuple)) else found[0]
            outputs = outputs if op.several or not isinstance(outputs, list) else outputs[0]
            _check(op, outputs)
        except Exception:
            return None
        return outputs

    def _enter(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
        """Record the dimensions of an operation's inputs for the modules that they enter."""
        parts = place_of(node).split(".") if place_of(node) else []
        for each in node.all_input_nodes:
            value, before = values[each], place_of(each)
            if each.op != "call_function" or not isinstance(value, TracedTensor):
                continue
            for depth in range(len(parts), 0, -1):
                inside = ".".join(parts[:depth])
                if f"{before}.".startswith(f"{inside}."):
                    break
                self._entering.setdefault(inside, {}).update((id(dim), dim) for dim in value.dims)

    def _record(self, op: Op, path: str, args: Any, found: Any) -> None:
        traced = self._traced
        if op.normalised is not None:
            traced.normalised[path] = op.normalised
        traced.makers.update(map(id, op.makes))
        traced.fixed_sizes.extend((dim, op.label) for dim in op.fixed_sizes if not op.is_frozen(dim))
        traced.tried.extend((dim, op.label) for dim in op.tried if not op.is_frozen(dim))
        traced.ambiguous.extend([op.label] * op.ambiguous)
        traced.guessed.extend([op.label] * op.guessed)
        traced.attributes.extend((path, name, dim) for name, dim in op.attributes if not op.is_frozen(dim))
        for dim in op.fixed_sizes:
            entered = self._entering.get(op.where, {}) if len(dim) > 1 and not op.is_frozen(dim) else {}
            traced.same_size.extend((dim, each) for each in entered.values() if len(each) == len(dim))
        traced.work.extend(products(op.name, args, found))
        inputs = [each for each in tree_leaves(args) if isinstance(each, TracedTensor)]
        if isinstance(op.module, nn.modules.dropout._DropoutNd) and inputs:
            traced.dropped.setdefault(path, []).append(inputs[0].dims)

    def _fixed(self, value: Any) -> Any:
        """Return a value without units; a size that depends on data becomes a number."""
        if isinstance(value, Tensor):
            return TracedTensor.fixed(self._shape(value))
        return tree_map_only(torch.SymInt, self._number, value)

    def _shape(self, value: Tensor) -> tuple[int, ...]:
        return tuple(map(self._number, value.shape))

    def _number(self, size: int | torch.SymInt) -> int:
        """Return a size as a number; a size that depends on data is any number, equal ones the same."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        for symbol in expression.free_symbols:
            self._sizes.setdefault(symbol, 5 + len(self._sizes))
        return int(expression.subs({symbol: self._sizes[symbol] for symbol in expression.free_symbols}))


def _expanded(function: Any, args: Any, kwargs: Any, kinds: Mapping[int, torch.dtype]) -> fx.GraphModule:
    """Return a graph of the operations that an operation consists of.

    Raises:
        ValueError: it consists of itself alone.
    """
    from torch._decomp import core_aten_decompositions  # slow to import
    from torch.fx.experimental.proxy_tensor import make_fx

    def empty(value: TracedTensor) -> Tensor:
        return torch.empty(value.shape, dtype=kinds.get(id(value), torch.float32), device="meta")

    def call(*tensors: Tensor) -> Any:
        each = iter(tensors)
        filled = tree_map(lambda value: next(each) if isinstance(value, TracedTensor) else value, (args, kwargs))
        return function(*filled[0], **filled[1])

    inputs = [empty(each) for each in tree_leaves((args, kwargs)) if isinstance(each, TracedTensor)]
    with torch.no_grad():
        made = make_fx(call, decomposition_table={**core_aten_decompositions()})(*inputs)
    if any(node.op == "call_function" and node.target is function for node in made.graph.nodes):
        raise ValueError(f"{function} is not expressed by other operations")
    return made


def _check(op: Op, found: Any) -> None:
    """Raise RuntimeError if a rule returned other shapes than the operation's."""
    shapes = [each.shape for each in (found if isinstance(found, list) else [found])]
    if shapes != list(op.shapes):
        raise RuntimeError(f"The rule of {op.label} gives the shapes {shapes}, but they are {list(op.shapes)}")
