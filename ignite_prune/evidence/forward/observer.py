"""Observes a model's forward pass: layer inputs, activations and attention heads of selected weights.

A torch function mode sees every torch call between the start and the end of the model's ``forward``, so functional
calls, shared modules and layers called twice are seen like modules. Two hooks on the root turn the mode on and off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.inert_hook import InertHook
from ignite_prune._utils.nested import tensors_in
from ignite_prune._utils.shard import is_sharded
from ignite_prune.core.selection import unwrap
from ignite_prune.evidence.forward.attention_tracker import AttentionTracker
from ignite_prune.evidence.forward.evaluation_points import EvaluationPoints
from ignite_prune.evidence.forward.layer_calls import LayerCall, derive, layer_call_of
from ignite_prune.evidence.forward.op_tables import READING, Call, enter_attention, op_name
from ignite_prune.evidence.forward.root_forward import RootForward
from ignite_prune.evidence.forward.tensor_tags import TensorTags
from ignite_prune.evidence.forward.unsharded_weights import UnshardedWeights

Callback = Callable[..., object]
_ATTENTION = frozenset(("softmax", "scaled_dot_product_attention"))


class CallEditor(Protocol):
    """Changes the results of observed calls; see :class:`.AfterActivation`."""

    def begin(self) -> None:
        """Called when a forward pass starts."""

    def run(self, call: Call, proceed: Callable[[Call], Any]) -> Any:
        """Return the result of a call; ``proceed(call)`` runs and observes it."""

    def end(self) -> None:
        """Called when a forward pass has ended without an exception."""

    def clear(self) -> None:
        """Called when a forward pass has ended."""


class ForwardObserver(TorchFunctionMode):
    """Calls its subscribers with what happens to selected weights in a model's forward passes.

    A layer call takes the parameter itself, or a cast, a transpose or some rows of it. Subscribers are called outside
    the mode, in the forward's own grad mode; the tensors that they get may be overwritten once they return. Forwards
    under ``torch.compile`` are not observed; ``torch.compiler.set_stance("force_eager")`` makes them observable.

    Args:
        is_enabled: whether subscribers are called, evaluated at each event; None: always.
        editor: changes the results of calls.

    Attributes:
        parameters: the selected weights by name.
        tags: what is known of the tensors of the running forward pass.
        points: follows units to their evaluation points; None while nothing needs them.
        unknown: for weights used by anything but a layer call, the name of the function.
        uses: the number of layer calls by weight.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> seen, weights = [], {"0.weight": model[0].weight, "2.weight": model[2].weight}
        >>> record = lambda name, z, *dims: seen.append((name, z.shape))
        >>> observer = ForwardObserver().subscribe(weights, on_activation=record)
        >>> with observer.installed(model):
        ...     output = model(torch.ones(5, 2))
        >>> seen
        [('0.weight', torch.Size([5, 3])), ('2.weight', torch.Size([5, 1]))]
    """

    def __init__(self, is_enabled: Callable[[], bool] | None = None, editor: CallEditor | None = None) -> None:
        super().__init__()
        self.parameters: dict[str, nn.Parameter] = {}
        self.unknown: dict[str, str] = {}
        self.uses: dict[str, int] = {}
        self.tags = TensorTags()
        self.points: EvaluationPoints | None = None
        self._attentions: AttentionTracker | None = None
        self._is_enabled, self._editor = is_enabled, editor
        self._subscribers: dict[str, list[tuple[Collection[str], Callback]]] = {}
        self._model = nn.Module()
        self._buffers: set[int] | None = None
        self._batches: list[tuple[int | None, int]] = []  # samples and heads of running F.multi_head_attention_forward
        self._handles: list[RemovableHandle | RootForward | UnshardedWeights] = []

    def subscribe(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        on_model_input: Callback | None = None,
        on_layer_call: Callback | None = None,
        on_activation: Callback | None = None,
        on_attention: Callback | None = None,
        on_end: Callback | None = None,
    ) -> ForwardObserver:
        """Add a subscriber, before :meth:`install`; return this observer.

        Args:
            parameters: the weights that it selects, by name; with none only the model's input is observed.
            on_model_input: called as ``on_model_input(args, kwargs)`` at the start of every forward pass.
            on_layer_call: called as ``on_layer_call(name, layer_call)`` before each layer call.
            on_activation: called as ``on_activation(name, activation, dim, samples)`` once for each layer call that
                uses all rows of its weight, with the tensor at the layer's evaluation point (see
                :class:`.EvaluationPoints`), in the autograd graph, the dim of the units, counted from the end, and the
                dim of the samples: 0, but 1 inside ``F.multi_head_attention_forward``.
            on_attention: called as ``on_attention(attention)`` for each attention, when its output projection runs.
            on_end: called with the observer at the end of each forward pass.
        """
        self.parameters |= parameters
        self.tags.add_weights(parameters)
        given = {"model_input": on_model_input, "layer_call": on_layer_call, "activation": on_activation}
        for event, callback in {**given, "attention": on_attention, "end": on_end}.items():
            if callback is not None:
                self._subscribers.setdefault(event, []).append((parameters, callback))
        if on_activation is not None:
            self.follow_units()
        if on_attention is not None and self._attentions is None:
            self._attentions = AttentionTracker(self.tags, self._batches, partial(self._deliver, "attention", None))
        return self

    def follow_units(self) -> EvaluationPoints:
        """Follow units to their evaluation points; return what follows them."""
        if self.points is None:
            self.points = EvaluationPoints(self.tags, partial(self._deliver, "activation"), self._is_constant)
        return self.points

    def _deliver(self, event: str, name: str | None, *given: Any) -> None:
        """Call the subscribers of an event; an event of one weight goes to the subscribers that selected it."""
        if event in self._subscribers and (self._is_enabled is None or self._is_enabled()):
            with torch._C.DisableTorchFunction():  # other modes must not see what subscribers compute
                for names, callback in self._subscribers[event]:
                    if name is None:
                        callback(*given)
                    elif name in names:
                        callback(name, *given)

    # Hooks

    def install(self, model: nn.Module) -> None:
        """Observe the forward passes of a model, bare or wrapped, until :meth:`remove`; a second call does nothing."""
        if self._handles or not (self.parameters or self._subscribers):
            return
        if not self.parameters:
            hook = InertHook(self._enter_model)
            self._handles.append(unwrap(model).register_forward_pre_hook(hook, with_kwargs=True))
            return
        self._handles.append(RootForward(model, self._begin, self._end))
        if any(map(is_sharded, self.parameters.values())):
            self._handles.append(UnshardedWeights(unwrap(model), self.tags))

    def remove(self) -> None:
        """Stop observing, and leave the mode if an interrupted forward pass did not."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[ForwardObserver]:
        """Observe the forward passes of a model inside a ``with`` block."""
        self.install(model)
        try:
            yield self
        finally:
            self.remove()

    def _enter_model(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            for _, callback in self._subscribers.get("model_input", ()):
                callback(args, kwargs)

    def _begin(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self._model, self._buffers = model, None
        if self._editor is not None:
            self._editor.begin()
        self.__enter__()  # type: ignore[no-untyped-call]
        self._enter_model(model, args, kwargs)

    def _end(self, failed: bool) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            if not failed:
                self._finish()
        finally:
            for each in (self.points, self._attentions, self._editor, self.tags):
                if each is not None:
                    each.clear()
            self._batches.clear()
            self._buffers = None

    def _finish(self) -> None:
        for follower in (self.points, self._attentions):
            if follower is not None:
                follower.finish()
        for _, callback in self._subscribers.get("end", ()):
            callback(self)
        if self._editor is not None:
            self._editor.end()

    # The mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._enter_attention(args, kwargs)
        seen = self._touches(args) or (kwargs and self._touches(kwargs.values()))
        if not seen and (self._attentions is None or op_name(func) not in _ATTENTION):
            return func(*args, **kwargs)
        call = Call.of(func, args, kwargs)
        return self._run(call) if self._editor is None else self._editor.run(call, self._run)

    def _touches(self, values: Any) -> bool:
        by_id = self.tags.by_id
        for value in values:
            if id(value) in by_id:
                return True
            if type(value) in (tuple, list):
                for part in value:
                    if id(part) in by_id:
                        return True
        return False

    def _run(self, call: Call) -> Any:
        """Run a call and deliver its events."""
        if call.op in READING:
            result = call.func(*call.args, **call.kwargs)
            derive(call, result, self.tags)
            return self._attentions.after(call, result) if self._attentions is not None and call.turns else result
        step = None if self.points is None else self.points.before(call)
        layer = layer_call_of(call, self.tags)
        if layer is not None:
            self._deliver("layer_call", layer.name, layer)  # before the call: its input is in the cache
        result = call.func(*call.args, **call.kwargs)
        if step is not None and self.points is not None:
            self.points.after(step, result)
        if layer is not None:
            self._after_layer(layer, result)
            return result
        self._after_other(call, result)
        return result if self._attentions is None else self._attentions.after(call, result)

    def _after_layer(self, call: LayerCall, output: Tensor) -> None:
        self.uses[call.name] = self.uses.get(call.name, 0) + 1
        if self.points is not None and call.rows is None:
            self.points.start(call.name, output, call.unit_dim, self._batches[-1][0] if self._batches else None)
        if self._attentions is not None:
            self._attentions.after_layer(call, output, self.parameters[call.name])

    def _after_other(self, call: Call, result: object) -> None:
        """Tag what a call derives from selected weights, or record that it uses them in an unknown way."""
        tags = map(self.tags.of, call.tensors)
        weights = [tag.weight for tag in tags if tag is not None and tag.weight is not None]
        if weights and any(True for _ in tensors_in(result)) and not derive(call, result, self.tags):
            self.unknown |= {weight.name: call.op for weight in weights}

    def _enter_attention(self, args: Any, kwargs: Any) -> Any:
        call = Call.of(F.multi_head_attention_forward, args, kwargs)
        query: Tensor = call.argument(0, "query")
        self._batches.append((query.shape[1] if query.dim() == 3 else None, call.argument(4, "num_heads")))
        try:
            return enter_attention(self, args, kwargs)
        finally:
            self._batches.pop()

    def _is_constant(self, tensor: Tensor) -> bool:
        base = tensor if tensor._base is None else tensor._base
        if isinstance(base, nn.Parameter):
            return True
        if self._buffers is None:
            self._buffers = {id(buffer) for buffer in self._model.buffers()}
        return id(base) in self._buffers
