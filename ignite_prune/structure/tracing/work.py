"""How much an operation computes, and with which dimensions that grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ignite_prune.structure.tracing.rules.arithmetic import letters_of
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor

Product = tuple[int, tuple[Dim, ...]]
"""Floating-point operations, two to a multiplication and addition, and the dimensions that they are a product of."""


def products(name: str, args: Sequence[Any], out: Any) -> list[Product]:
    """Return an operation's floating-point operations, none where it multiplies no matrices.

    Args:
        name: of the operation.
        args: its own, with a TracedTensor for each tensor.
        out: what its rule gave.
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


def _baddbmm(
    out: TracedTensor, added: TracedTensor, first: TracedTensor, second: TracedTensor, *args: Any
) -> list[Product]:
    return _matmul(out, first, second)


def _einsum(out: TracedTensor, equation: str, tensors: Sequence[TracedTensor]) -> list[Product]:
    """Two tensors' product; of more the way is not known, and one alone is a sum."""
    if len(tensors) != 2 or "." in equation:
        return []
    inputs, _ = letters_of(equation)
    dims = dict(pair for each, tensor in zip(inputs, tensors) for pair in zip(each, tensor.dims))
    return [(2 * math.prod(map(len, dims.values())), tuple(dims.values()))]


def _attention(
    out: TracedTensor, query: TracedTensor, key: TracedTensor, value: TracedTensor, *args: Any
) -> list[Product]:
    return [(2 * _numel(each) * key.shape[-2], each.dims) for each in (query, out)]


def _recurrent(
    out: list[TracedTensor], x: TracedTensor, hidden: Any, weights: Sequence[TracedTensor], *args: Any
) -> list[Product]:
    positions = _numel(x) // max(1, x.shape[-1])
    each = (weight for weight in weights if len(weight.dims) == 2)
    return [(2 * positions * _numel(weight), (*x.dims[:-1], *weight.dims)) for weight in each]


_WORK: dict[str, Callable[..., list[Product]]] = {
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    "baddbmm": _baddbmm,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("lstm", "gru"), _recurrent),
}
