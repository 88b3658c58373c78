"""Rules of elementwise operations, and of new tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ignite_prune.structure.tracing.rules.op import Op, Rule
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor
from ignite_prune.structure.tracing.zero import Zero

_PROBES = (-2.3, -0.4, 0.3, 0.7, 3.1)


def pointwise(op: Op, *args: Any, **kwargs: Any) -> TracedTensor:
    """Elementwise function of tensors, with broadcasting: dimensions of equal size are tied."""
    values = _tensors(args, kwargs)
    dims = tied_broadcast(op, [each.dims for each in values])
    return TracedTensor(dims, _zero(op, dims, args, kwargs))


def tied_broadcast(op: Op, each: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    """Tie dimensions that are broadcast against each other, freeze those of size 1, and return the result's."""
    rank = max(map(len, each), default=0)
    return tuple(_together(op, [dims[d] for dims in each if len(dims) >= -d]) for d in range(-rank, 0))


def _together(op: Op, dims: Sequence[Dim]) -> Dim:
    size = max(map(len, dims))
    wide = [dim for dim in dims if len(dim) == size]
    for other in wide[1:]:
        op.tie(wide[0], other)
    for dim in dims:
        if len(dim) < size:
            op.freeze(dim, "broadcasts it")
    return wide[0]


def _tensors(args: Any, kwargs: Any) -> list[TracedTensor]:
    return [each for each in tree_leaves((args, kwargs)) if isinstance(each, TracedTensor)]


def _zero(op: Op, dims: Sequence[Dim], args: Any, kwargs: Any) -> Zero:
    """Return whether the result is 0 for pruned units, because it is where the arguments are 0 that are so for them.

    An argument that is broadcast along a dimension with units is 0 for all of them or for none.
    """
    units = [d for d in range(-len(dims), 0) if not op.is_frozen(dims[d])]
    covers = {
        id(each): each.zero
        for each in _tensors(args, kwargs)
        if each.zero and all(len(each.dims) >= -d and len(each.dims[d]) == len(dims[d]) for d in units)
    }
    return min(covers.values()) if covers and _is_zero(op.function, args, kwargs, covers.keys()) else Zero.NO


def _is_zero(function: Any, args: Any, kwargs: Any, zeros: Any) -> bool:
    """Return whether a function is 0 if these arguments are 0 and the other tensors are some numbers."""

    def number(value: Any) -> Any:
        if not isinstance(value, TracedTensor):
            return value
        return torch.zeros(len(_PROBES)) if id(value) in zeros else torch.tensor(_PROBES)

    try:
        found = function(*tree_map(number, args), **tree_map(number, kwargs))
    except Exception:  # takes bools or integers alone
        return False
    return isinstance(found, Tensor) and not bool(found.ne(0).any())


def where(op: Op, condition: TracedTensor, first: Any, second: Any) -> TracedTensor:
    dims = tied_broadcast(op, [each.dims for each in (condition, first, second) if isinstance(each, TracedTensor)])
    units = [d for d in range(-len(dims), 0) if not op.is_frozen(dims[d])]
    zeros = []
    for each in (first, second):
        if isinstance(each, TracedTensor):
            whole = all(len(each.dims) >= -d and len(each.dims[d]) == len(dims[d]) for d in units)
            zeros.append(each.zero if whole else Zero.NO)
        else:
            zeros.append(Zero.MASKED if each == 0 else Zero.NO)
    return TracedTensor(dims, min(zeros))


def where_filled(op: Op, x: TracedTensor, mask: TracedTensor, value: Any) -> TracedTensor:
    return where(op, mask, value, x)


def copied(op: Op, x: TracedTensor, source: TracedTensor, *args: Any) -> TracedTensor:
    """``copy_``: the values of another tensor, broadcast to the shape of this one."""
    dims = tied_broadcast(op, [x.dims, source.dims])
    return TracedTensor(dims, source.zero if source.shape == x.shape else Zero.NO)


def same(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor:
    """The same tensor, a copy, or a function with f(0) = 0."""
    return TracedTensor(x.dims, x.zero)


def masked_same(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> list[TracedTensor]:
    """The same tensor with some entries 0, and which."""
    return [TracedTensor(x.dims, x.zero), TracedTensor(x.dims)]


def filled(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor:
    """New values in the shape of another tensor."""
    return TracedTensor(x.dims)


def made_of_shape(op: Op, *args: Any, **kwargs: Any) -> TracedTensor:
    """New tensor of a given shape with different values along it."""
    return TracedTensor.fixed(op.shapes[0])


def constant(op: Op, *args: Any, **kwargs: Any) -> TracedTensor:
    """New tensor of a given shape with one value: a trial shows whether the program computes its sizes."""
    zero = Zero.COMPUTED if "zeros" in op.name else Zero.NO
    return TracedTensor(tuple(map(op.open, op.shapes[0])), zero)


_SAME = (
    "contiguous", "detach", "detach_", "alias", "_to_copy", "to", "type_as", "float", "lift_fresh_copy", "lift_fresh",
    "dropout", "dropout_", "feature_dropout", "feature_dropout_", "tril", "triu", "tril_", "triu_",
    "zeros_like", "zero_", "real", "imag", "conj", "resolve_conj",
    "resolve_neg", "_conj", "_neg_view", "requires_grad_", "clone",
)  # fmt: skip
_FILLED = (
    "fill", "alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_", "fill_", "ones_like",
    "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_", "normal_",
    "uniform_", "exponential_",
)  # fmt: skip
_POINTWISE = (  # without torch's tag
    "relu6_", "mish_", "hardswish", "hardswish_", "log_sigmoid", "rsub", "__and__", "__or__", "__xor__",
    "__iand__", "__ior__", "floor_divide", "floor_divide_", "multiply", "multiply_", "divide", "divide_", "subtract",
    "subtract_", "true_divide", "true_divide_", "special_expit", "arctan", "arctan_", "fix", "square", "square_",
    "complex", "polar",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(_FILLED, filled),
    **dict.fromkeys(_POINTWISE, pointwise),
    "native_dropout": masked_same,
    "where": where,
    **dict.fromkeys(("masked_fill", "masked_fill_"), where_filled),
    **dict.fromkeys(("copy_", "copy"), copied),
    **dict.fromkeys(("arange", "eye", "rand", "randn", "randint", "randperm", "linspace", "logspace"), made_of_shape),
    **dict.fromkeys(("scalar_tensor", "tensor", "_tensor_constant"), made_of_shape),
    **dict.fromkeys(("zeros", "ones", "full", "empty"), constant),
    **dict.fromkeys(("new_ones", "new_zeros", "new_full", "new_empty"), constant),
}
