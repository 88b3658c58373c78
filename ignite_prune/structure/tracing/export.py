"""Propagation of unit ids through the graph that ``torch.export`` gives of a model.

Which channels are coupled (by a residual sum, a concatenation, shared gates) is decided by ``forward``, not by the
modules, so it is read from the exported graph, where functional calls, tied weights and reshapes are all visible.
Every index of every parameter dimension starts with a separate id; each operation then merges the ids of indices
that can only be removed together. A union-find does this in any order, needs no fixed point, and couples parts of a
dimension (the halves of a ``chunk``) as easily as whole ones (``propagation``). Dead code (a loss that is not returned)
only couples. The graph shows no difference between a size that is computed and one that is hard-coded, so ``trace``
runs the model with one unit removed (``SizeProbe``) and freezes the groups for which it fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import config
from torch.utils._pytree import tree_leaves

from ignite_prune._utils.copies import copy_of
from ignite_prune._utils.quiet import quiet
from ignite_prune.structure.tracing.attribute_reads import Reads, record_reads
from ignite_prune.structure.tracing.failure import told
from ignite_prune.structure.tracing.followed_run import followed_run
from ignite_prune.structure.tracing.graph import Graph
from ignite_prune.structure.tracing.heads_attention import use_heads_attention
from ignite_prune.structure.tracing.padded_sequences import PaddedSequences, use_padded_recurrent
from ignite_prune.structure.tracing.plain_forward import with_plain_forward
from ignite_prune.structure.tracing.propagation import Propagation, TracedModel
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor
from ignite_prune.structure.tracing.unit_ids import UnitIds
from ignite_prune.structure.tracing.zero import Zero

_NO_TRACES = "do_not_emit_stack_traces"

Export = tuple[Graph, Reads]
"""The graph of a forward pass, and the attributes that it has read."""


class Exports:
    """A model's exported programs, each made when it is first asked for, as exporting takes most of a tracing's time.

    Args:
        model: the unwrapped model.
        args: positional arguments of its forward pass.
        kwargs: keyword arguments of its forward pass.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.model, self._args, self._kwargs = model, args, kwargs

    @cached_property
    def in_eval(self) -> Export:
        """In eval mode; raises ValueError if the model does not run, or cannot be exported."""
        return _exported(self.model, self._args, self._kwargs)

    @cached_property
    def in_training(self) -> Export | None:
        """In training mode; None if it cannot be exported."""
        return _exported_in_training(self.model, self._args, self._kwargs)


def trace_units(
    exports: Exports, through_norms: bool = False, in_training: bool = False, last: bool = False
) -> TracedModel:
    """Propagate unit ids through the graph of a model in eval mode.

    Args:
        exports: of the model.
        through_norms: whether units may be removed from a dimension that a norm normalises over.
        in_training: follow the forward pass in training mode too, which may have branches of its own.
        last: which of several sizes to take for a number of units.

    Raises:
        ValueError: the model does not run, or cannot be exported; the message gives the reason.
    """
    model, units = exports.model, UnitIds()
    traced = TracedModel(units, _new_ids(model, units))
    units.given = len(units)
    for path, module in model.named_modules():  # a program may reshape a weight before its layer uses it
        if isinstance(module, nn.modules.conv._ConvNd) and f"{path}.weight" in traced.held:
            kernel = traced.held[f"{path}.weight"][2:]
            for dim in kernel:
                units.freeze(dim, f"conv{len(kernel)}d in {path} uses it as a kernel dimension")
    used = _followed(*exports.in_eval, traced, model, through_norms, last)
    if in_training:
        exported = exports.in_training
        again = replace(traced, work=[], dropped={}, normalised={})
        used |= set() if exported is None else _followed(*exported, again, model, through_norms, last)
    for dims in traced.held.values():
        for dim in dims if id(dims) not in used else ():
            units.freeze(dim, "the forward pass does not use it")
            traced.unused.append(dim)
    return traced


def _followed(
    graph: Graph, reads: Reads, traced: TracedModel, model: nn.Module, through_norms: bool, last: bool
) -> set[int]:
    """Propagate ids through an exported graph, and return the ``id`` of the held dimensions that it uses."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    inputs: list[TracedTensor | None] = []
    for name in graph.names:
        zero = Zero.MASKED if name in parameters else Zero.NO
        inputs.append(None if name is None else TracedTensor(traced.held[name], zero))
    propagation = Propagation(traced, dict(model.named_modules()), through_norms, reads, last)
    found = propagation.run(graph.graph, graph.owner, inputs, traced.units)
    for each in tree_leaves(found):
        _freeze_output(each, traced.units)
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return {id(traced.held[name]) for name, node in zip(graph.names, places) if name is not None and node.users}


def _copy_sharing_memory(model: nn.Module) -> nn.Module:
    """Return a copy with new tensor objects over the same memory; exporting never reads or writes their values."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if type(tensor) is nn.Parameter:
            memo[id(tensor)] = nn.Parameter(tensor.detach(), tensor.requires_grad)
        elif type(tensor) is Tensor:
            memo[id(tensor)] = tensor.detach()
    return copy_of(model, memo)


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Export:
    try:
        try:
            return _export(model, args, kwargs)
        except Exception:  # HeadsAttention takes no mask per head; torch's own layer does
            return _export(model, args, kwargs, heads=False)
    except Exception as error:
        _check_runs(model, args, kwargs)
        found = None
        with suppress(Exception):
            found = _run(model, args, kwargs)
        if found is not None:
            warnings.warn(f"The structure is that of the branches which example_inputs take: {error}", stacklevel=2)
            return found
        raise ValueError(
            f"The model cannot be exported by torch.export: {error}. structure.declare(model, groups) needs no export: "
            'it takes the tensors that lose units together, [{"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}], and '
            "shrink() then compares outputs; everything that is not declared keeps its size"
        ) from None


def _exported_in_training(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Export | None:
    """Return the graph of the forward pass in training mode; None if it cannot be exported."""
    try:
        return _export(model, args, kwargs, training=True)
    except Exception:
        return None


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], heads: bool = True, training: bool = False
) -> Export:
    with quiet(), _without_traces(), torch.no_grad(), PaddedSequences():
        copied = _copy_sharing_memory(model).train(training)
        if heads:
            use_heads_attention(copied)
        use_padded_recurrent(copied)
        reads = record_reads(copied)
        given = with_plain_forward(copied, args, kwargs)
        try:
            return _graph_of(torch.export.export(copied, given, strict=False)), reads
        except Exception as error:
            raise ValueError(told(error, copied)) from None


def _graph_of(exported: Any) -> Graph:
    from torch.export.graph_signature import InputKind  # slow to import

    held = (InputKind.PARAMETER, InputKind.BUFFER)
    names = [spec.target if spec.kind in held else None for spec in exported.graph_signature.input_specs]
    return Graph(exported.graph, exported.graph_module, names)


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Export:
    """Return the graph of a run with these arguments, of a model that cannot be exported."""
    with quiet(), torch.no_grad(), torch.random.fork_rng(), PaddedSequences():
        copied = copy_of(model).eval()
        use_heads_attention(copied)
        use_padded_recurrent(copied)
        reads = record_reads(copied)
        return followed_run(copied, with_plain_forward(copied, args, kwargs)), reads


@contextmanager
def _without_traces() -> Iterator[None]:
    """Leave out the stack traces of nodes, which take a fifth of an export's time and are not needed."""
    before = vars(config).get(_NO_TRACES)
    vars(config)[_NO_TRACES] = True  # an option of torch from 2.8 on; without effect before
    try:
        yield
    finally:
        vars(config)[_NO_TRACES] = before


def _check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError if the model does not run with these inputs at all."""
    copied = copy_of(model).eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            copied(*args, **kwargs)
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


def _freeze_output(value: Any, units: UnitIds) -> None:
    if isinstance(value, TracedTensor):
        for dim in value.dims:
            units.freeze(dim, "it is the model's output")
