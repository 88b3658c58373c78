"""Attention heads in the data flow: the layers of queries, keys and values, and the output of each head.

A selected layer's output is followed through changes of shape and arithmetic (rotary embeddings, repeated keys) into an
attention; from there the heads' outputs are followed to the layer that takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ignite_prune._utils.nested import tensors_in
from ignite_prune.evidence.forward import op_tables as ops
from ignite_prune.evidence.forward.layer_calls import LayerCall
from ignite_prune.evidence.forward.tensor_tags import TensorTags


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """One attention of a forward pass; weights by name, None for one that is not selected.

    Attributes:
        context: the heads' outputs before the output projection, (batch, heads, length, head_size), in the graph.
        packed: one weight that computes query, key and value (then they are None), whose rows follow each other.
    """

    context: Tensor
    output: str | None
    query: str | None
    key: str | None
    value: str | None
    packed: str | None
    heads: int
    kv_heads: int  # fewer than heads with grouped queries
    head_size: int


@dataclass(frozen=True, slots=True)
class HeadSource:
    """A tensor computed from the output of one selected layer."""

    name: str
    units: int


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Products of queries and keys; ``soft``: after the softmax."""

    query: HeadSource | None
    key: HeadSource | None
    soft: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class HeadContext:
    """An attention's output, before the output projection."""

    tensor: Tensor
    query: HeadSource | None
    key: HeadSource | None
    value: HeadSource | None
    kv_heads: int


_KEEPING = ops.SHAPING | ops.PASSING | ops.DROPOUT
_COMPUTING = _KEEPING | ops.ARITHMETIC | ops.NORMS | {"tanh", "clamp", "clip"}


class AttentionTracker:
    """Finds the attentions of a forward pass.

    - ``F.scaled_dot_product_attention`` on (batch, heads, length, size).
    - A product whose first factor is a softmax, on the same shapes; in ``F.multi_head_attention_forward``, where the
      number of heads is known, on (batch · heads, length, size) too.

    Args:
        tags: the tags of the forward pass.
        batches: samples (None: unbatched) and heads of each running ``F.multi_head_attention_forward``.
        deliver: called with an :class:`Attention` when a selected layer takes its output, or else at the end.
    """

    def __init__(
        self, tags: TensorTags, batches: list[tuple[int | None, int]], deliver: Callable[[Attention], object]
    ) -> None:
        self._tags, self._batches, self._deliver = tags, batches, deliver
        self._waiting: dict[int, HeadContext] = {}

    def after(self, call: ops.Call, result: Any) -> Any:
        """Follow a call's result and return it; where heads are folded into the batch, return a view of a view."""
        if call.op == "scaled_dot_product_attention":
            taken = [call.argument(i, name) for i, name in enumerate(("query", "key", "value"))]
            self._found(result, *(_as_source(self._flow(each)) for each in taken), _heads_of(taken[1]))
        elif call.op == "softmax":
            flow = self._flow(call.input)
            pair = (flow.query, flow.key) if isinstance(flow, HeadScores) else (None, None)
            self._mark(result, HeadScores(*pair, soft=True))
        elif call.op in ops.PRODUCTS:
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

    def after_layer(self, call: LayerCall, output: Tensor, parameter: nn.Parameter) -> None:
        """Follow a layer: its input may be the heads' output, and its output is a source."""
        flow = self._flow(call.input)
        if isinstance(flow, HeadContext) and id(flow) in self._waiting:
            self._send(flow, call.name)
        self._mark(output, HeadSource(call.name, parameter.shape[1 if call.transposed else 0]))

    def _product(self, call: ops.Call, result: Tensor) -> Tensor:
        first, second = call.tensors[-2:]
        left, right = self._flow(first), self._flow(second)
        if not (isinstance(left, HeadScores) and left.soft):
            self._mark(result, HeadScores(_as_source(left), _as_source(right)))
            return result
        samples, heads = self._batches[-1] if self._batches else (0, 0)
        samples = 1 if samples is None else samples
        if result.dim() == 3 and result.shape[0] == samples * heads:
            folded = result.view(samples, heads, *result.shape[1:])
            self._found(folded, left.query, left.key, _as_source(right), heads)
            around = folded.view(result.shape)
            self._mark(around, self._flow(folded))
            return around
        self._found(result, left.query, left.key, _as_source(right), _heads_of(second))
        return result

    def _found(self, context: Any, *sources: Any) -> None:
        if isinstance(context, Tensor) and context.dim() == 4:
            flow = HeadContext(context, *sources)
            self._waiting[id(flow)] = flow
            self._mark(context, flow)

    def _carried(self, call: ops.Call) -> HeadSource | HeadScores | HeadContext | None:
        """Return the one known flow that a call carries on to its result, or None."""
        flows = {flow for flow in map(self._flow, call.tensors) if flow is not None}
        if len(flows) != 1 or call.op in ops.COMPARISONS:
            return None
        flow = flows.pop()
        allowed = _KEEPING | {"mul"} if isinstance(flow, HeadContext) else _COMPUTING
        return flow if call.op in allowed or call.turns else None

    def _send(self, context: HeadContext, output: str | None) -> None:
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
        tag = self._tags.of(tensor)
        return None if tag is None else tag.flow


def _as_source(flow: Any) -> HeadSource | None:
    return flow if isinstance(flow, HeadSource) else None


def _heads_of(keys: Tensor) -> int:
    return keys.shape[1] if keys.dim() == 4 else 0
