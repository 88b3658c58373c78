"""Sees a model's own forward pass: what goes into each selected layer, its activation and its attention heads.

A torch function mode sees every torch call between the model's entry and its exit, so functional calls, shared
modules and layers used twice are seen like modules, and the model is not touched but for two hooks on its root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ignite_prune.evidence.forward.attention_heads import Attention, Heads
from ignite_prune.evidence.forward.evaluation_points import Points
from ignite_prune.evidence.forward.hooks import Installed, install, watching
from ignite_prune.evidence.forward.layer_calls import Use, derive, read_use, used_weight
from ignite_prune.evidence.forward.op_tables import READING, Call, enter_attention, op_name, tensors_in, turns, unit_dim
from ignite_prune.evidence.forward.tensor_tags import Notes

_ATTENTION = frozenset(("softmax", "scaled_dot_product_attention"))

__all__ = ["Attention", "Installed", "Use", "Watch", "install", "watching"]


class Watch(TorchFunctionMode):
    """A mode that reports, for selected weights, the inputs of their layers, the activations and the heads.

    A use of a weight is a call that takes the parameter itself (or a cast, a transpose, some rows of it). Callbacks run
    outside the mode, in the forward's own grad mode; what they are given may be overwritten in place once they return.

    Args:
        parameters: the selected weights by name.
        on_input: called as ``on_input(name, use)`` before each use by a linear or convolutional layer.
        on_activation: called as ``on_activation(name, activation, dim, samples)`` once for each use, with the tensor at
            the layer's best evaluation point (see :class:`.Points`), in the autograd
            graph, the dim of the units, counted from the end, and the dim of the samples: 0, but 1 inside
            ``F.multi_head_attention_forward``. Not called for uses of some rows of a weight.
        on_heads: called as ``on_heads(attention)`` once for each attention, when its output projection runs.

    Attributes:
        unknown: name of the function for each weight that was used in a way that is none of the above.
        uses: how often each weight was used by a layer.
        norms: the scale of the batch norm that last followed each weight's layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> seen, weights = [], {"0.weight": model[0].weight, "2.weight": model[2].weight}
        >>> watch = Watch(weights, on_activation=lambda name, z, *dims: seen.append((name, z.shape)))
        >>> with watching(model, watch):
        ...     output = model(torch.ones(5, 2))
        >>> seen
        [('0.weight', torch.Size([5, 3])), ('2.weight', torch.Size([5, 1]))]
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        on_input: Callable[[str, Use], object] | None = None,
        on_activation: Callable[[str, Tensor, int, int], object] | None = None,
        on_heads: Callable[[Attention], object] | None = None,
    ) -> None:
        super().__init__()
        self.parameters = dict(parameters)
        self.unknown: dict[str, str] = {}
        self.uses: dict[str, int] = {}
        self._on_input = None if on_input is None else _unseen(on_input)
        self._notes = Notes(self.parameters)
        self._by_id = self._notes.by_id
        self._points = None if on_activation is None else Points(self._notes, _unseen(on_activation), self._is_constant)
        self._heads = None if on_heads is None else Heads(self._notes, _unseen(on_heads))
        self._always = _ATTENTION if self._heads is not None else frozenset()
        self._buffers: Callable[[], Sequence[Tensor]] = tuple
        self._constants: set[int] | None = None
        self._batches: list[int | None] = []  # samples of each F.multi_head_attention_forward that runs

    @property
    def norms(self) -> dict[str, nn.Parameter]:
        """The scale of the batch norm that last followed each weight's layer, by the weight's name."""
        return {} if self._points is None else self._points.norms

    def begin(self, model: nn.Module) -> None:
        """Note the model whose forward begins; its buffers count as constants."""
        self._buffers = lambda: tuple(model.buffers())
        self._constants = None

    def finish(self) -> None:
        """Deliver what is still on its way: the forward is over."""
        try:
            if self._points is not None:
                self._points.finish()
            if self._heads is not None:
                self._heads.finish()
        finally:
            self.clear()

    def clear(self) -> None:
        """Forget this forward without delivering."""
        if self._points is not None:
            self._points.clear()
        if self._heads is not None:
            self._heads.clear()
        self._notes.clear()
        self._batches.clear()
        self._constants = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._enter_attention(args, kwargs)
        seen = self._touches(args) or (kwargs and self._touches(kwargs.values()))
        if not seen and (not self._always or op_name(func) not in self._always):
            return func(*args, **kwargs)
        return self._see(Call.of(func, args, kwargs))

    def _touches(self, values: Any) -> bool:
        by_id = self._by_id
        for value in values:
            if id(value) in by_id:
                return True
            if type(value) in (tuple, list):
                for part in value:
                    if id(part) in by_id:
                        return True
        return False

    def _see(self, call: Call) -> Any:
        if call.op in READING:
            result = call.func(*call.args, **call.kwargs)
            derive(call, result, self._notes)
            return self._heads.after(call, result) if self._heads is not None and turns(call) else result
        step = None if self._points is None else self._points.before(call)
        weight = used_weight(call, self._notes)
        use = None if weight is None else read_use(call, weight)
        if weight is not None and use is not None and self._on_input is not None:
            self._on_input(weight.name, use)  # before the layer runs: its input is in the cache still
        result = call.func(*call.args, **call.kwargs)
        if step is not None and self._points is not None:
            self._points.after(step, result)
        if weight is not None and use is not None:
            self._used(weight.name, replace(use, output=result))
            return result
        self._derived_or_unknown(call, result)
        return result if self._heads is None else self._heads.after(call, result)

    def _used(self, name: str, use: Use) -> None:
        self.uses[name] = self.uses.get(name, 0) + 1
        if self._points is not None and use.rows is None:
            self._points.start(name, use.output, unit_dim(use.kind), self._batches[-1] if self._batches else None)
        if self._heads is not None:
            self._heads.used(name, use, self.parameters[name])

    def _derived_or_unknown(self, call: Call, result: object) -> None:
        notes = [note for note in map(self._notes.of, call.tensors) if note is not None and note.weight is not None]
        if notes and any(True for _ in tensors_in(result)) and not derive(call, result, self._notes):
            for note in notes:
                if note.weight is not None:
                    self.unknown[note.weight.name] = call.op

    def _enter_attention(self, args: Any, kwargs: Any) -> Any:
        call = Call.of(F.multi_head_attention_forward, args, kwargs)
        query: Tensor = call.argument(0, "query")
        self._batches.append(query.shape[1] if query.dim() == 3 else None)
        try:
            with nullcontext() if self._heads is None else self._heads.inside(call):
                return enter_attention(self, args, kwargs)
        finally:
            self._batches.pop()

    def _is_constant(self, tensor: Tensor) -> bool:
        base = tensor if tensor._base is None else tensor._base
        if isinstance(base, nn.Parameter):
            return True
        if self._constants is None:
            self._constants = {id(buffer) for buffer in self._buffers()}
        return id(base) in self._constants


def _unseen(callback: Callable[..., object]) -> Callable[..., object]:
    """Keep what a callback computes from other modes, a tape's above all."""

    def run(*args: Any) -> object:
        with torch._C.DisableTorchFunction():
            return callback(*args)

    return run
