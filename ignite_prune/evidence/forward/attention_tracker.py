"""Attention heads in the data flow: the layers of queries, keys and values, and the output of each head.

A selected layer's output is followed through changes of shape and arithmetic (rotary embeddings, repeated keys) into an
attention; from there the heads' outputs are followed to the layer that takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ignite_prune._utils.nested import tensors_in
from ignite_prune.evidence.forward.layer_calls import LayerCall
from ignite_prune.evidence.forward.op_tables import (
    ARITHMETIC,
    COMPARISONS,
    DROPOUT,
    NORMS,
    PASSING,
    PRODUCTS,
    SHAPING,
    Call,
    turns,
)
from ignite_prune.evidence.forward.tensor_tags import TensorTags


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """One attention of a forward pass.

    Attributes:
        context: the heads' outputs, before the output projection: (batch, heads, length, head_size), in the autograd
            graph.
        output: name of the selected weight of the output projection.
        query: name of the selected weight that computes the queries; ``key`` and ``value`` likewise.
        packed: name of one weight that computes all three (then they are None): its rows are queries, keys, values.
        heads: the number of heads.
        kv_heads: the number of heads of keys and values; fewer with grouped queries.
        head_size: the size of each head.
    """

    context: Tensor
    output: str | None
    query: str | None
    key: str | None
    value: str | None
    packed: str | None
    heads: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor computed from the output of one selected layer."""

    name: str
    units: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Products of queries and keys; ``soft``: after the softmax."""

    query: Source | None
    key: Source | None
    soft: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """An attention's output, before the output projection."""

    tensor: Tensor
    query: Source | None
    key: Source | None
    value: Source | None
    kv_heads: int


_KEEPING = SHAPING | PASSING | DROPOUT
_COMPUTING = _KEEPING | ARITHMETIC | NORMS | {"tanh", "clamp", "clip"}


class AttentionTracker:
    """Finds the attentions of a forward pass.

    - ``F.scaled_dot_product_attention`` on (batch, heads, length, size).
    - A product whose first factor is a softmax, on the same shapes; in ``F.multi_head_attention_forward``, where the
      number of heads is known, on (batch · heads, length, size) too.

    Args:
        tags: the tags of the forward pass.
        deliver: called with an :class:`Attention` when a selected layer takes its output, or else at the end.
    """

    def __init__(self, tags: TensorTags, deliver: Callable[[Attention], object]) -> None:
        self._tags = tags
        self._deliver = deliver
        self._waiting: dict[int, Context] = {}
        self._batches: list[tuple[int, int]] = []  # samples and heads of the running F.multi_head_attention_forward

    @contextmanager
    def inside(self, call: Call) -> Iterator[None]:
        """Use the samples and heads of a call of ``F.multi_head_attention_forward`` inside it."""
        query: Tensor = call.argument(0, "query")
        self._batches.append((query.shape[1] if query.dim() == 3 else 1, call.argument(4, "num_heads")))
        try:
            yield
        finally:
            self._batches.pop()

    def after(self, call: Call, result: Any) -> Any:
        """Follow a call's result and return it; where heads are folded into the batch, return a view of a view."""
        if call.op == "scaled_dot_product_attention":
            query, key, value = (
                self._source(call.argument(i, name)) for i, name in enumerate(("query", "key", "value"))
            )
            keys = call.argument(1, "key")
            self._found(result, query, key, value, keys.shape[1] if keys.dim() == 4 else 0)
        elif call.op == "softmax":
            flow = self._flow(call.input)
            pair = (flow.query, flow.key) if isinstance(flow, Scores) else (None, None)
            self._mark(result, Scores(*pair, soft=True))
        elif call.op in PRODUCTS:
            return self._product(call, result)
        elif (flow := self._carried(call)) is not None:
            self._mark(result, flow)
        return result

    def finish(self) -> None:
        """Deliver the attentions whose output no selected layer has taken."""
        for context in list(self._waiting.values()):
            self._send(context, None)

    def clear(self) -> None:
        """Drop all attentions without delivering."""
        self._waiting.clear()
        self._batches.clear()

    def on_layer_call(self, name: str, call: LayerCall, parameter: nn.Parameter) -> None:
        """Follow a layer: its input may be the heads' output, and its output is a source."""
        flow = self._flow(call.input)
        if isinstance(flow, Context) and id(flow) in self._waiting:
            self._send(flow, name)
        self._mark(call.output, Source(name, parameter.shape[1 if call.transposed else 0]))

    def _product(self, call: Call, result: Tensor) -> Tensor:
        first, second = call.tensors[-2:]
        left, right = self._flow(first), self._flow(second)
        if not (isinstance(left, Scores) and left.soft):
            self._mark(result, Scores(_as_source(left), _as_source(right)))
            return result
        samples, heads = self._batches[-1] if self._batches else (0, 0)
        if result.dim() == 3 and result.shape[0] == samples * heads:
            folded = result.view(samples, heads, *result.shape[1:])
            self._found(folded, left.query, left.key, _as_source(right), heads)
            around = folded.view(result.shape)
            self._mark(around, self._flow(folded))
            return around
        self._found(result, left.query, left.key, _as_source(right), second.shape[1] if second.dim() == 4 else 0)
        return result

    def _found(self, context: Any, *sources: Any) -> None:
        if isinstance(context, Tensor) and context.dim() == 4:
            flow = Context(context, *sources)
            self._waiting[id(flow)] = flow
            self._mark(context, flow)

    def _carried(self, call: Call) -> Source | Scores | Context | None:
        """Return the one known flow that a call carries on to its result, or None."""
        flows = {flow for flow in map(self._flow, call.tensors) if flow is not None}
        if len(flows) != 1 or call.op in COMPARISONS:
            return None
        flow = flows.pop()
        allowed = _KEEPING | {"mul"} if isinstance(flow, Context) else _COMPUTING
        return flow if call.op in allowed or turns(call) else None

    def _send(self, context: Context, output: str | None) -> None:
        del self._waiting[id(context)]
        _, heads, _, size = context.tensor.shape
        query, key, value = (None if s is None else s.name for s in (context.query, context.key, context.value))
        packed = query if query is not None and query == key == value else None
        if packed is not None and context.key is not None:
            kv_heads = (context.key.units - heads * size) // (2 * size)
            query = key = value = None
        else:
            known = context.key or context.value
            shared = 2 if key is not None and key == value else 1
            kv_heads = known.units // (size * shared) if known is not None else context.kv_heads
        self._deliver(Attention(context.tensor, output, query, key, value, packed, heads, kv_heads, size))

    def _mark(self, result: Any, flow: Any) -> None:
        for tensor in tensors_in(result):
            self._tags.at(tensor).flow = flow

    def _flow(self, tensor: Any) -> Any:
        tag = self._tags.of(tensor) if isinstance(tensor, Tensor) else None
        return None if tag is None else tag.flow

    def _source(self, tensor: Any) -> Source | None:
        return _as_source(self._flow(tensor))


def _as_source(flow: Any) -> Source | None:
    return flow if isinstance(flow, Source) else None
