"""One forward pass, evaluated again and again with other values at an evaluation point.

A whole pass with an observer that overwrites the point always works. A replay is quicker: the pass is recorded as a
graph of ATen operations with their results, and only the operations between the point and the result run again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ignite_prune._utils.nested import mapped, tensors_in
from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.evidence.forward.op_tables import op_name

# Operations that give values to Python, where a graph cannot follow, and methods that Python reads the memory by.
_READING = frozenset(("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::item"))
_MEMORY = frozenset(("numpy", "array", "tolist", "dlpack"))
AtPoint = Callable[[str, Tensor, int, Mapping[str, int]], object]
"""Called with a layer's weight, its evaluation point, the dim of the units and the layer calls before."""


@dataclass(frozen=True, slots=True)
class LayerPoint:
    """A copy of a layer's evaluation point, the dim of its units from the end, and the layer calls before it."""

    value: Tensor
    dim: int
    before: Mapping[str, int]


class PassReplay:
    """A forward pass under ``no_grad`` whose evaluation points can be replaced.

    The pass should not use random numbers. Memory: every intermediate result of the pass.

    Args:
        model: in eval mode.
        call: runs the model on ``x``, and the loss if that is wanted; returns one tensor.
        x: the argument of ``call``: a tensor, or a dict, list or tuple of tensors.
        parameters: the weights of the layers, by name.

    Attributes:
        result: the result of ``call``.
        points: the last evaluation point of each layer, by the weight's name.
        repeated: the layers that have several.

    Raises:
        TypeError: ``call`` does not return a tensor.
        ValueError: the model is in training mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
        >>> replay = PassReplay(model, model, torch.ones(4, 2), dict(model.named_parameters()))
        >>> replay.is_exact("0.weight")
        True
        >>> bool((replay.replay("0.weight", torch.zeros(4, 3)) == model[2].bias).all())
        True
    """

    def __init__(
        self, model: nn.Module, call: Callable[[Any], Tensor], x: Any, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        if model.training:
            raise ValueError("A replay needs a model in eval mode, but the model given is in training mode")
        self._model, self._call, self._x, self._parameters = model, call, x, parameters
        self.points: dict[str, LayerPoint] = {}
        self.repeated: set[str] = set()
        recorder = _OpRecorder()

        def at_point(name: str, z: Tensor, dim: int, before: Mapping[str, int]) -> None:
            if name in self.points:
                self.repeated.add(name)
            self.points[name] = LayerPoint(recorder.mark(name, z), dim, before)

        with recorder:
            self.result = self._run(x, at_point, recorder.read)
        if not isinstance(self.result, Tensor):
            raise TypeError(f"Argument call should return a tensor, but returned {type(self.result)}")
        recorder.result = recorder.nodes.get(id(self.result))
        self._recorder = self._without_side_effects() if recorder.mutates else recorder

    def _without_side_effects(self) -> _OpRecorder | None:
        """Record the pass with in-place operations replaced, if that is possible."""
        recorder = _OpRecorder()

        def call(x: Any) -> Tensor:
            return recorder.mark(None, self._run(x, lambda name, z, *_: recorder.mark(name, z), _refuse))

        try:
            with recorder:
                torch.func.functionalize(call)(self._x)
        except Exception:  # of many types: a tensor from outside is changed, an operation has no such rule
            return None
        return None if recorder.mutates else recorder

    def _run(self, x: Any, at_point: AtPoint, on_read: Callable[[Tensor], object] = lambda _: None) -> Tensor:
        """Run the model and the loss; ``on_read`` is called with tensors that Python code reads (``if tensor:``)."""
        observer = ForwardObserver()
        observer.subscribe(
            self._parameters, on_activation=lambda name, z, dim, _: at_point(name, z, dim, dict(observer.uses))
        )
        with torch.inference_mode(False), torch.no_grad(), observer.installed(self._model), _Readings(on_read):
            return self._call(x)

    def rerun(self, name: str, value: Tensor) -> Tensor | None:
        """Return the result of a whole pass with ``value`` at a layer's point; None if other layer calls lead to it."""
        done, point = list[Tensor](), self.points[name]
        value = _checked(value, point.value)

        def replace(found: str, z: Tensor, dim: int, before: Mapping[str, int]) -> None:
            if found == name and not done and before == point.before and z.shape == value.shape:
                done.append(z.copy_(value))

        # As in the recording: without a dispatch mode the observer does not see scripted functions.
        with _OpRecorder(records=False):
            result = self._run(self._x, replace)
        return result if done else None

    @torch.no_grad()
    def replay(self, name: str, value: Tensor) -> Tensor:
        """Return the result with ``value`` at a layer's point, from the operations after the point alone."""
        value = _checked(value, self.points[name].value)
        run = None if self._recorder is None else self._recorder.function(name)
        return self.result if run is None else run(value)

    def is_exact(self, name: str) -> bool:
        """Return whether replays of the point's own value and of another one equal whole passes to the bit."""
        if self._recorder is None or self._recorder.function(name) is None:
            return False
        value = self.points[name].value
        if not _same_bits(self.replay(name, value), self.result):
            return False
        other = value.clone()
        other.view(-1)[::2] = 0
        expected = self.rerun(name, other)
        return expected is not None and _same_bits(self.replay(name, other), expected)


class _OpRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation as a node of a graph, with its result; without ``records`` it only runs them."""

    def __init__(self, records: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._records = records
        self.nodes: dict[int, fx.Node] = {}  # by the id of the tensor, which `values` keeps alive
        self.values: dict[fx.Node, Any] = {}
        self.mutates = False  # whether an operation was in place, so that values are not what they were
        self.result: fx.Node | None = None
        self._graph = fx.Graph()
        self._points: dict[str, fx.Node] = {}
        self._functions: dict[str, Callable[[Tensor], Tensor] | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.mutates |= func._schema.is_mutable
        result = func(*args, **kwargs)
        if self._records and not self.mutates:
            node = self._graph.call_function(func, mapped(args, self._node), mapped(kwargs, self._node))
            self._keep(node, result)
        return result

    def _node(self, tensor: Tensor) -> fx.Node:
        node = self.nodes.get(id(tensor))
        if node is None:
            self._keep(node := self._graph.placeholder("given"), tensor)
        return node

    def _keep(self, node: fx.Node, value: Any) -> None:
        self.values[node] = value
        if isinstance(value, Tensor):
            self.nodes[id(value)] = node
        elif isinstance(value, (tuple, list)):
            for index, part in enumerate(value):
                self._keep(self._graph.call_function(operator.getitem, (node, index)), part)

    def read(self, tensor: Tensor) -> None:
        """Record that Python reads a tensor's values."""
        if not self.mutates:
            self.values[self._graph.call_function(_refuse, (self._node(tensor),))] = None

    def mark(self, name: str | None, tensor: Tensor) -> Tensor:
        """Store which node a tensor is, as a point or, without a name, as the result; return a copy of it."""
        copy = tensor.clone()
        node = next(reversed(self.values), None)  # the copy's: it shows the tensor as operations see it
        if not self.mutates and node is not None and isinstance(node.args[0], fx.Node):
            if name is None:
                self.result = node.args[0]
            else:
                self._points[name] = node.args[0]
        return copy

    def function(self, name: str) -> Callable[[Tensor], Tensor] | None:
        """Return the result as a function of the value at a point; None if it does not depend on the point alone."""
        if name not in self._functions:
            self._functions[name] = None
            # An argument may be one that generated code cannot name, such as a torch.Generator.
            with suppress(Exception):
                self._functions[name] = self._compile(self._points[name])
        return self._functions[name]

    def _compile(self, point: fx.Node) -> Callable[[Tensor], Tensor] | None:
        result = self.result
        steps = None if result is None else _between(point, result, list(self.values))
        if result is None or steps is None or not (steps or point is result):
            return None
        graph, copies, outside = fx.Graph(), dict[fx.Node, fx.Node](), list[Any]()
        copies[point] = graph.placeholder(point.name)
        for step in steps:
            for node in step.all_input_nodes:
                if node not in copies:  # before the point, or on another branch
                    copies[node] = graph.placeholder(node.name)
                    outside.append(self.values[node])
            copies[step] = graph.node_copy(step, copies.__getitem__)
        graph.output(copies[result])
        module = fx.GraphModule({}, graph)
        return lambda value: module(value, *outside)


class _Readings(TorchFunctionMode):
    """Reports the tensors whose memory Python reads, which no operation shows."""

    def __init__(self, on_read: Callable[[Tensor], object]) -> None:
        super().__init__()
        self._on_read = on_read

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op_name(func) in _MEMORY:
            for tensor in tensors_in(args):
                self._on_read(tensor)
        return func(*args, **(kwargs or {}))


def _refuse(tensor: Tensor) -> None:
    raise ValueError("The pass reads values in Python, where a graph cannot follow")


def _between(point: fx.Node, result: fx.Node, nodes: list[fx.Node]) -> list[fx.Node] | None:
    """Return the nodes between two nodes, in order; None if Python reads a value that depends on the first."""
    after, needed = {point}, {result}
    for node in nodes:
        if not after.isdisjoint(node.all_input_nodes):
            after.add(node)
            made = node.target
            if made is _refuse or (isinstance(made, torch._ops.OpOverload) and made._schema.name in _READING):
                return None
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in nodes if node in after and node in needed and node is not point]


def _checked(value: Tensor, like: Tensor) -> Tensor:
    """Return a value of the point's shape and type with the point's strides, which operations like ``view`` need."""
    if value.shape != like.shape or value.dtype != like.dtype:
        raise ValueError(
            f"Argument value should be {like.dtype} of shape {tuple(like.shape)} as the point's, but given "
            f"{value.dtype} of shape {tuple(value.shape)}"
        )
    if value.stride() == like.stride():
        return value.detach()
    return torch.empty_like(like, memory_format=torch.preserve_format).copy_(value)


def _same_bits(*tensors: Tensor) -> bool:
    a, b = (tensor.detach().reshape(-1).contiguous().view(torch.uint8) for tensor in tensors)
    return tensors[0].shape == tensors[1].shape and tensors[0].dtype == tensors[1].dtype and torch.equal(a, b)
