"""FLOPs of operations, as a product over dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ignite_prune.structure.tracing.rules.products import letters_of
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor

Product = tuple[int, tuple[Dim, ...]]
"""FLOPs, counting a multiply-add as two, and the dimensions whose sizes multiply to them."""


def products(name: str, args: Sequence[Any], out: Any) -> list[Product]:
    """Return the FLOPs of an operation; an empty list unless it is a matrix product of some kind.

    Args:
        name: name of the operation.
        args: its arguments, with each tensor replaced by a TracedTensor.
        out: its output, from its rule.
    """
    return _WORK[name](out, *args) if name in _WORK else []


def _numel(value: TracedTensor) -> int:
    return math.prod(value.shape)


def _linear(out: TracedTensor, x: TracedTensor, weight: TracedTensor, *args: Any) -> list[Product]:
    return [(2 * _numel(out) * weight.shape[1], (*out.dims, weight.dims[1]))]


def _addmm(out: TracedTensor, bias: TracedTensor, x: TracedTensor, weight: TracedTensor) -> list[Product]:
    return [(2 * _numel(out) * weight.shape[0], (*out.dims, weight.dims[0]))]


def _conv(out: TracedTensor, x: TracedTensor, weight: TracedTensor, *args: Any) -> list[Product]:
    return [(2 * _numel(out) * math.prod(weight.shape[1:]), (*out.dims, weight.dims[1]))]


def _conv_transpose(out: TracedTensor, x: TracedTensor, weight: TracedTensor, *args: Any) -> list[Product]:
    return [(2 * _numel(x) * math.prod(weight.shape[1:]), (*x.dims, weight.dims[1]))]


def _matmul(out: TracedTensor, first: TracedTensor, second: TracedTensor) -> list[Product]:
    return [(2 * _numel(out) * first.shape[-1], (*out.dims, first.dims[-1]))]


def _grouped_mm(out: TracedTensor, x: TracedTensor, weight: TracedTensor, *args: Any) -> list[Product]:
    return [(2 * _numel(out) * weight.shape[1], (*out.dims, weight.dims[1]))]


def _baddbmm(
    out: TracedTensor, added: TracedTensor, first: TracedTensor, second: TracedTensor, *args: Any
) -> list[Product]:
    return _matmul(out, first, second)


def _einsum(out: TracedTensor, equation: str, tensors: Sequence[TracedTensor]) -> list[Product]:
    """Count a product of two tensors; the contraction order of more is unknown, and one alone is a sum."""
    if len(tensors) != 2:
        return []
    inputs, _ = letters_of(equation, [len(each.dims) for each in tensors])
    dims = dict(pair for each, tensor in zip(inputs, tensors) for pair in zip(each, tensor.dims))
    return [(2 * math.prod(map(len, dims.values())), tuple(dims.values()))]


def _attention(
    out: TracedTensor, query: TracedTensor, key: TracedTensor, value: TracedTensor, *args: Any
) -> list[Product]:
    return [(2 * _numel(each) * key.shape[-2], each.dims) for each in (query, out)]


def _recurrent(out: list[TracedTensor], x: TracedTensor, hidden: Any, weights: Any, *args: Any) -> list[Product]:
    if isinstance(hidden, TracedTensor) and len(hidden.dims) == 1:  # a packed sequence
        weights = args[0]
    positions = _numel(x) // max(1, x.shape[-1])
    each = (weight for weight in weights if len(weight.dims) == 2)
    return [(2 * positions * _numel(weight), (*x.dims[:-1], *weight.dims)) for weight in each]


def _cell(
    out: Any, x: TracedTensor, hidden: Any, into: TracedTensor, within: TracedTensor, *args: Any
) -> list[Product]:
    positions = _numel(x) // max(1, x.shape[-1])
    return [(2 * positions * _numel(weight), (*x.dims[:-1], *weight.dims)) for weight in (into, within)]


_WORK: dict[str, Callable[..., list[Product]]] = {
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    "baddbmm": _baddbmm,
    **dict.fromkeys(("_grouped_mm", "transformers::grouped_mm_fallback"), _grouped_mm),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
}
