"""From a model to the units of its parameters' dimensions: it is exported, and every operation is followed."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ignite_prune.structure.tracing.heads_attention import take_heads
from ignite_prune.structure.tracing.rules import RULES, Op
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor
from ignite_prune.structure.tracing.unit_ids import TieOnly, UnitIds
from ignite_prune.structure.tracing.work import Product, products


@dataclass(frozen=True)
class Traced:
    """What following a model gives.

    Args:
        units: the ids.
        held: the ids of every parameter's and buffer's dimensions, by name; of tied ones under every name.
        unknown: operations without a rule, and where they stand.
        work: the floating-point operations of each, and the dimensions that they are a product of.
        dropped: the dimensions of what each Dropout module is called with, by its path.
        normalised: by request, the dimension that each norm goes over, by its path.
        makers: the dimensions of weights where units are made, by ``id``.
        fixed_sizes: dimensions whose sizes are numbers in the graph, and by which operation.
    """

    units: UnitIds
    held: Mapping[str, tuple[Dim, ...]]
    unknown: list[str] = field(default_factory=list)
    work: list[Product] = field(default_factory=list)
    dropped: dict[str, list[tuple[Dim, ...]]] = field(default_factory=dict)
    normalised: dict[str, Dim] = field(default_factory=dict)
    makers: set[int] = field(default_factory=set)
    fixed_sizes: list[tuple[Dim, str]] = field(default_factory=list)


def follow(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], through_norms: bool = False) -> Traced:
    """Export a copy of a model in eval mode and follow the units through it.

    Args:
        model: unwrapped.
        args: its positional arguments.
        kwargs: its keyword arguments.
        through_norms: whether what a norm goes over may go.

    Raises:
        ValueError: it cannot be exported; the reason is told.
    """
    from torch.export.graph_signature import InputKind  # slow to import

    exported = _exported(model, args, kwargs)
    units, modules = UnitIds(), dict(model.named_modules())
    traced = Traced(units, _fresh(model, units))
    alive = _alive(exported.graph)
    values: dict[fx.Node, Any] = {}
    given = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = given[node.name]
            known = spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
            masked = spec.kind == InputKind.PARAMETER
            values[node] = TracedTensor(traced.held[spec.target], zero=masked) if known else _fixed(node)
        elif node.op == "call_function":
            values[node] = _called(
                node, values, traced, units if node in alive else TieOnly(units), modules, through_norms
            )
        elif node.op == "output":
            fx.map_arg(node.args, lambda each: _stay(values[each], units))
        else:
            values[node] = _fixed(node)
    _freeze_unused(traced.held, exported, units)
    return traced


def _alive(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the outputs, or anything that is written to, come of."""
    alive: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op != "call_function" or node.is_impure() or any(user in alive for user in node.users):
            alive.add(node)
    return alive


def _freeze_unused(held: Mapping[str, tuple[Dim, ...]], exported: Any, units: UnitIds) -> None:
    """Freeze what the forward pass never reads: nothing is known of it."""
    specs = {spec.arg.name: spec.target for spec in exported.graph_signature.input_specs}
    used = [
        held[specs[n.name]] for n in exported.graph.nodes if n.op == "placeholder" and n.users and specs[n.name] in held
    ]
    known = {id(dims) for dims in used}
    for dims in held.values():
        for dim in dims if id(dims) not in known else ():
            units.freeze(dim, "the forward pass does not use it")


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy whose tensors are others over the same memory: exporting computes with none, but refers to them."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if type(tensor) is nn.Parameter:
            memo[id(tensor)] = nn.Parameter(tensor.detach(), tensor.requires_grad)
        elif type(tensor) is Tensor:
            memo[id(tensor)] = tensor.detach()
    return copy.deepcopy(model, memo)


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            twin = _twin(model).eval()
            take_heads(twin)
            try:
                return torch.export.export(twin, args, dict(kwargs), strict=False)
            except Exception:  # heads with a mask each cannot be told apart from their number
                return torch.export.export(_twin(model).eval(), args, dict(kwargs), strict=False)
    except Exception as error:
        _check_runs(model, args, kwargs)
        raise ValueError(
            "The model cannot be exported by torch.export, so its structure is not known; structure.declare(model, "
            f"groups) takes it by hand. {error}"
        ) from error


def _check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise where a model does not take these inputs at all."""
    try:
        with torch.no_grad(), torch.random.fork_rng():
            copy.deepcopy(model).eval()(*args, **kwargs)
    except Exception as error:
        raise ValueError(f"Argument example_inputs: the model does not run with them: {error}") from error


def _fresh(model: nn.Module, units: UnitIds) -> dict[str, tuple[Dim, ...]]:
    """Return new ids for every parameter's and buffer's dimensions; tied ones share them."""
    ids: dict[int, tuple[Dim, ...]] = {}
    held = {}
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in everything:
        if id(tensor) not in ids:
            ids[id(tensor)] = tuple(units.new(size) for size in tensor.shape)
        held[name] = ids[id(tensor)]
    return held


def _fixed(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return TracedTensor.fixed(value.shape) if isinstance(value, Tensor) else value


def _called(
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    traced: Traced,
    units: UnitIds,
    modules: Mapping[str, nn.Module],
    through_norms: bool,
) -> Any:
    args: Any
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    if node.target is operator.getitem:
        return args[0][args[1]]
    made = node.meta.get("val")
    shapes = [
        tuple(each.shape) for each in (made if isinstance(made, (list, tuple)) else [made]) if isinstance(each, Tensor)
    ]
    if not shapes:
        return made
    name = _name(node.target)
    where = _where(node)
    path = where.partition("@")[0]  # "@1": the module's second call
    op = Op(units, name, where, shapes, modules.get(path), through_norms, _named(node.target, args, kwargs))
    taken = [each for each in _leaves((args, kwargs)) if isinstance(each, TracedTensor)]
    try:
        found = RULES[name](op, *args, **kwargs)
        _check(op, found)
    except Exception:  # without a rule, or called in a way that its rule does not know
        traced.unknown.append(op.told)
        found = op.freeze_all(taken, "is not known")
        found = found if isinstance(made, (list, tuple)) else found[0]
    if op.normalised is not None:
        traced.normalised[path] = op.normalised
    traced.makers.update(map(id, op.makes))
    traced.fixed_sizes.extend((dim, op.told) for dim in op.fixed_sizes if not op.is_frozen(dim))
    traced.work.extend(products(name, args, found))
    if isinstance(op.module, nn.modules.dropout._DropoutNd) and taken:
        traced.dropped.setdefault(path, []).append(taken[0].dims)
    return found


def _named(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operation's arguments by their names."""
    schema = getattr(target, "_schema", None)
    return {**{each.name: value for each, value in zip(schema.arguments if schema else (), args)}, **kwargs}


def _name(target: Any) -> str:
    """The operation's name without its overload; of another library's with that library's."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(target)
    library, _, name = schema.name.partition("::")
    return str(name if library == "aten" else schema.name)


def _where(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for each in value.values() for leaf in _leaves(each)]
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in _leaves(each)]
    return [value]


def _check(op: Op, found: Any) -> None:
    """Make sure that a rule gave the shapes that the operation has."""
    shapes = [each.shape for each in (found if isinstance(found, list) else [found])]
    if shapes != list(op.shapes):
        raise RuntimeError(f"The rule of {op.told} gives the shapes {shapes}, but they are {list(op.shapes)}")


def _stay(value: Any, units: UnitIds) -> None:
    if isinstance(value, TracedTensor):
        for dim in value.dims:
            units.freeze(dim, "it is the model's output")
