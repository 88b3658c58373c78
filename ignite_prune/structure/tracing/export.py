"""Propagation of unit ids through the graph that ``torch.export`` gives of a model.

Which channels are coupled (by a residual sum, a concatenation, shared gates) is decided by ``forward``, not by the
modules, so it is read from the exported graph, where functional calls, tied weights and reshapes are all visible.
Every index of every parameter dimension starts with a separate id; each operation then merges the ids of indices
that can only be removed together. A union-find does this in any order, needs no fixed point, and couples parts of a
dimension (the halves of a ``chunk``) as easily as whole ones. There is one rule per operation (``rules/``). An
operation without a rule, or called in a way that its rule does not expect, freezes all dimensions of its inputs: too
little is pruned then, never something wrong. Dead code (a loss that is not returned) only couples. The graph shows no
difference between a size that is computed and one that is hard-coded, so ``trace`` runs the model with one unit removed
(``SizeProbe``) and freezes the groups for which it fails.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ignite_prune.structure.tracing.heads_attention import use_heads_attention
from ignite_prune.structure.tracing.rules import RULES, Op
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor
from ignite_prune.structure.tracing.unit_ids import TieOnly, UnitIds
from ignite_prune.structure.tracing.work import Product, products


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
    """

    units: UnitIds
    held: Mapping[str, tuple[Dim, ...]]
    unknown: list[str] = field(default_factory=list)
    work: list[Product] = field(default_factory=list)
    dropped: dict[str, list[tuple[Dim, ...]]] = field(default_factory=dict)
    normalised: dict[str, Dim] = field(default_factory=dict)
    makers: set[int] = field(default_factory=set)
    fixed_sizes: list[tuple[Dim, str]] = field(default_factory=list)


def trace_units(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], through_norms: bool = False
) -> TracedModel:
    """Export a copy of a model in eval mode and propagate unit ids through its graph.

    Args:
        model: the unwrapped model.
        args: positional arguments of its forward pass.
        kwargs: keyword arguments of its forward pass.
        through_norms: whether units may be removed from a dimension that a norm normalises over.

    Raises:
        ValueError: the model does not run, or cannot be exported; the message gives the reason.
    """
    from torch.export.graph_signature import InputKind  # slow to import

    exported = _exported(model, args, kwargs)
    units, modules = UnitIds(), dict(model.named_modules())
    traced = TracedModel(units, _new_ids(model, units))
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
            fx.map_arg(node.args, lambda each: _freeze_output(values[each], units))
        else:
            values[node] = _fixed(node)
    _freeze_unused(traced.held, exported, units)
    return traced


def _alive(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that an output or a mutation depends on; the rest is dead code."""
    alive: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op != "call_function" or node.is_impure() or any(user in alive for user in node.users):
            alive.add(node)
    return alive


def _freeze_unused(held: Mapping[str, tuple[Dim, ...]], exported: Any, units: UnitIds) -> None:
    """Freeze parameters and buffers that the forward pass never reads: nothing is known about their coupling."""
    specs = {spec.arg.name: spec.target for spec in exported.graph_signature.input_specs}
    used = [
        held[specs[n.name]] for n in exported.graph.nodes if n.op == "placeholder" and n.users and specs[n.name] in held
    ]
    known = {id(dims) for dims in used}
    for dims in held.values():
        for dim in dims if id(dims) not in known else ():
            units.freeze(dim, "the forward pass does not use it")


def _copy_sharing_memory(model: nn.Module) -> nn.Module:
    """Return a copy with new tensor objects over the same memory; exporting never reads or writes their values."""
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
            copied = _copy_sharing_memory(model).eval()
            use_heads_attention(copied)
            try:
                return torch.export.export(copied, args, dict(kwargs), strict=False)
            except Exception:  # HeadsAttention takes no mask per head; torch's own layer does
                return torch.export.export(_copy_sharing_memory(model).eval(), args, dict(kwargs), strict=False)
    except Exception as error:
        _check_runs(model, args, kwargs)
        raise ValueError(
            "The model cannot be exported by torch.export, so its structure is not known; give it with "
            f"structure.declare(model, groups). {error}"
        ) from error


def _check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError if the model does not run with these inputs at all."""
    try:
        with torch.no_grad(), torch.random.fork_rng():
            copy.deepcopy(model).eval()(*args, **kwargs)
    except Exception as error:
        raise ValueError(f"Argument example_inputs: the model does not run with them: {error}") from error


def _new_ids(model: nn.Module, units: UnitIds) -> dict[str, tuple[Dim, ...]]:
    """Return new ids for the dimensions of every parameter and buffer; tied tensors share theirs."""
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
    traced: TracedModel,
    units: UnitIds,
    modules: Mapping[str, nn.Module],
    through_norms: bool,
) -> Any:
    """Return the outputs of a call by its rule, and record in ``traced`` what the rule reports."""
    args: Any
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    if node.target is operator.getitem:
        return args[0][args[1]]
    output = node.meta.get("val")
    outputs = output if isinstance(output, (list, tuple)) else [output]
    shapes = [tuple(each.shape) for each in outputs if isinstance(each, Tensor)]
    if not shapes:
        return output
    name = _name(node.target)
    where = _where(node)
    path = where.partition("@")[0]  # "@1": the module's second call
    op = Op(units, name, where, shapes, modules.get(path), through_norms, _named(node.target, args, kwargs))
    inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, TracedTensor)]
    try:
        found = RULES[name](op, *args, **kwargs)
        _check(op, found)
    except Exception:  # there is no rule, or the rule does not expect this form of call
        traced.unknown.append(op.label)
        found = op.freeze_all(inputs, "is not known")
        found = found if outputs is output else found[0]
    if op.normalised is not None:
        traced.normalised[path] = op.normalised
    traced.makers.update(map(id, op.makes))
    traced.fixed_sizes.extend((dim, op.label) for dim in op.fixed_sizes if not op.is_frozen(dim))
    traced.work.extend(products(name, args, found))
    if isinstance(op.module, nn.modules.dropout._DropoutNd) and inputs:
        traced.dropped.setdefault(path, []).append(inputs[0].dims)
    return found


def _named(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operation's arguments by name."""
    schema = getattr(target, "_schema", None)
    return {**{each.name: value for each, value in zip(schema.arguments if schema else (), args)}, **kwargs}


def _name(target: Any) -> str:
    """Return the operation's name without its overload; with the namespace unless that is ``aten``."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(target)
    library, _, name = schema.name.partition("::")
    return str(name if library == "aten" else schema.name)


def _where(node: fx.Node) -> str:
    """Return the path of the module that a node was recorded in."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def _check(op: Op, found: Any) -> None:
    """Raise RuntimeError if a rule returned other shapes than the operation's."""
    shapes = [each.shape for each in (found if isinstance(found, list) else [found])]
    if shapes != list(op.shapes):
        raise RuntimeError(f"The rule of {op.label} gives the shapes {shapes}, but they are {list(op.shapes)}")


def _freeze_output(value: Any, units: UnitIds) -> None:
    if isinstance(value, TracedTensor):
        for dim in value.dims:
            units.freeze(dim, "it is the model's output")
