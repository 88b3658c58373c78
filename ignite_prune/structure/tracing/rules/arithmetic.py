"""Rules of elementwise operations, reductions and matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite_prune.structure.tracing.rules.op import Op, Rule
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor, fixed


def keeping_zero(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor:
    """Elementwise function with f(0) = 0."""
    return x


def moving_zero(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor:
    """Elementwise function with f(0) != 0; bounds may be tensors."""
    return TracedTensor(elementwise(op, x, *args, *kwargs.values()).dims)


def elementwise(op: Op, *args: Any, **kwargs: Any) -> TracedTensor:
    """Elementwise function of several tensors, with broadcasting: dimensions of equal size are tied."""
    values = [each for each in args if isinstance(each, TracedTensor)]
    rank = max(len(each.dims) for each in values)
    dims = [_together(op, [each.dims[d] for each in values if len(each.dims) >= -d]) for d in range(-rank, 0)]
    return TracedTensor(tuple(dims))


def _together(op: Op, dims: Sequence[Dim]) -> Dim:
    """Tie the dimensions that are broadcast against each other, freeze those of size 1, and return the result's."""
    size = max(map(len, dims))
    wide = [dim for dim in dims if len(dim) == size]
    for other in wide[1:]:
        op.tie(wide[0], other)
    for dim in dims:
        if len(dim) < size:
            op.freeze(dim, "broadcasts it")
    return wide[0]


def where(op: Op, condition: TracedTensor, first: Any, second: Any) -> TracedTensor:
    found = elementwise(op, *(each for each in (condition, first, second) if isinstance(each, TracedTensor)))
    return TracedTensor(found.dims)


def where_filled(op: Op, x: TracedTensor, mask: TracedTensor, value: Any) -> TracedTensor:
    return TracedTensor(elementwise(op, x, mask).dims)


def softmax(op: Op, x: TracedTensor, dim: int, *args: Any, **kwargs: Any) -> TracedTensor:
    op.freeze(x.dims[dim], "normalises over it")
    return TracedTensor(x.dims)


def reduce(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor | list[TracedTensor]:
    """Rule of reductions (sum, mean, max, ...): units along a reduced dimension are frozen, unless they are summed and
    the entries of pruned units are 0.

    ``min`` and ``max`` of two tensors are elementwise.
    """
    if args and isinstance(args[0], TracedTensor):
        return elementwise(op, x, *args)
    dim, keep = _reduced(op)
    gone = {d % len(x.dims) for d in (range(len(x.dims)) if dim is None or dim == [] else dim)} if x.dims else set()
    for d in gone:
        if not (op.name == "sum" and x.zero):
            op.freeze(x.dims[d], "reduces it")
    dims = [fixed(1) if d in gone else ids for d, ids in enumerate(x.dims) if keep or d not in gone]
    out = TracedTensor(tuple(dims), x.zero and op.name in ("sum", "mean", "amax", "max"))
    return out if len(op.shapes) == 1 else [out] * len(op.shapes)


def _reduced(op: Op) -> tuple[list[int] | None, bool]:
    dim = op.named.get("dim")
    return [dim] if isinstance(dim, int) else dim, bool(op.named.get("keepdim"))


def pool(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor | list[TracedTensor]:
    """Pooling or interpolation over the spatial dimensions."""
    space = 3 if "3d" in op.name else 2 if "2d" in op.name else 1
    size = op.shapes[0][-space:]
    for before in x.dims[-space:]:
        op.freeze(before, "pools over it")
    out = TracedTensor((*x.dims[:-space], *(fixed(n) for n in size)), x.zero)
    return out if len(op.shapes) == 1 else [out] * len(op.shapes)


def matmul(op: Op, first: TracedTensor, second: TracedTensor) -> TracedTensor:
    """Matrix product: the contracted dimension may lose units if a factor is a parameter, whose pruned units are 0."""
    if len(first.dims) == 1 or len(second.dims) == 1:
        return op.freeze_all([first, second], "multiplies vectors")[0]
    op.tie(first.dims[-1], second.dims[-2])
    if second.zero:
        op.makes.append(second.dims[-1])
    if not (first.zero or second.zero):
        op.freeze(first.dims[-1], "sums over it")
    batches = [each.dims[:-2] for each in (first, second)]
    rank = max(map(len, batches))
    outer = [_together(op, [each[d] for each in batches if len(each) >= -d]) for d in range(-rank, 0)]
    return TracedTensor((*outer, first.dims[-2], second.dims[-1]), first.zero and second.zero)


def baddbmm(op: Op, bias: TracedTensor, first: TracedTensor, second: TracedTensor, **kwargs: Any) -> TracedTensor:
    product = matmul(op, first, second)
    return TracedTensor(elementwise(op, bias, product).dims)


def einsum(op: Op, equation: str, tensors: Sequence[TracedTensor], **kwargs: Any) -> TracedTensor:
    """Einsum: dimensions with the same letter are tied; contracted ones are treated as in ``matmul``."""
    inputs, letters = letters_of(equation)
    if "." in equation or any(len(set(each)) < len(each) for each in inputs):
        return op.freeze_all(tensors, "takes a diagonal, or dimensions without a letter")[0]
    dims: dict[str, Dim] = {}
    for each, tensor in zip(inputs, tensors):
        for letter, dim in zip(each, tensor.dims):
            op.tie(dims.setdefault(letter, dim), dim)
    for letter in dims.keys() - set(letters):
        if not any(tensor.zero for each, tensor in zip(inputs, tensors) if letter in each):
            op.freeze(dims[letter], "sums over it")
    return TracedTensor(tuple(dims[letter] for letter in letters), all(tensor.zero for tensor in tensors))


def letters_of(equation: str) -> tuple[list[str], str]:
    """Return the letters of each operand and of the result; an implicit result has the letters that occur once.

    Example:
        >>> letters_of("bij, bjk")
        (['bij', 'bjk'], 'ik')
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    found = right if arrow else "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))
    return left.split(","), found


def glu(op: Op, x: TracedTensor, dim: int = -1) -> TracedTensor:
    """Gated linear unit: the two halves of the dimension are tied."""
    at = dim % len(x.dims)
    half, gate = x.dims[at].chunk(2)
    op.tie(half, gate)
    return x.put(at, half)


def cumulative(op: Op, x: TracedTensor, dim: int, *args: Any, **kwargs: Any) -> TracedTensor:
    op.freeze(x.dims[dim], "accumulates along it")
    return TracedTensor(x.dims)


def difference(op: Op, x: TracedTensor, n: int = 1, dim: int = -1, *args: Any, **kwargs: Any) -> TracedTensor:
    """Differences along a dimension, which is frozen."""
    for each in (x, *args, *kwargs.values()):
        if isinstance(each, TracedTensor):
            op.freeze(each.dims[dim], "takes differences along it")
    at = dim % len(x.dims)
    return TracedTensor((*x.dims[:at], fixed(op.shapes[0][at]), *x.dims[at + 1 :]), False)


def made(op: Op, *args: Any, **kwargs: Any) -> TracedTensor:
    """New tensor of a given shape; only a size that is read from a width attribute may shrink."""
    dims = [fixed(size) for size in op.shapes[0]]
    known = op.size_from_attribute(op.shapes[0])
    if known is not None:
        dims[known] = op.units.new(op.shapes[0][known])
    return TracedTensor(tuple(dims))


def like(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor:
    """New tensor with the shape of another."""
    return TracedTensor(x.dims)


_KEEP_ZERO = (
    "relu", "relu_", "relu6", "relu6_", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "gelu", "silu",
    "silu_", "mish", "mish_", "hardswish", "hardswish_", "tanh", "tanh_", "dropout",
    "dropout_", "neg", "abs", "square", "sqrt", "sin", "erf", "clone", "contiguous", "detach", "detach_", "alias",
    "to", "_to_copy", "type_as", "float", "sign", "lift_fresh_copy", "lift_fresh", "feature_dropout",
    "floor", "round", "nan_to_num", "softsign", "hardshrink", "softshrink", "tanhshrink", "tril", "triu",
    "zeros_like", "zero_",
)  # fmt: skip
_MOVE_ZERO = (
    "sigmoid", "sigmoid_", "hardtanh", "hardtanh_", "alpha_dropout", "hardsigmoid", "hardsigmoid_", "exp", "log",
    "log1p", "rsqrt", "reciprocal", "cos", "softplus", "clamp", "clamp_", "clamp_min", "clamp_max", "logical_not",
    "bitwise_not", "fill_", "isnan", "isinf", "log_sigmoid", "threshold",
)  # fmt: skip
_ELEMENTWISE = (
    "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "pow", "maximum", "minimum", "eq", "ne", "lt",
    "le", "gt", "ge", "logical_and", "logical_or", "bitwise_and", "bitwise_or", "__and__", "__or__", "remainder",
    "fmod", "floor_divide", "atan2", "logical_xor",
    "lerp", "addcmul", "addcdiv",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_KEEP_ZERO, keeping_zero),
    **dict.fromkeys(_MOVE_ZERO, moving_zero),
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    "where": where,
    **dict.fromkeys(("masked_fill", "masked_fill_"), where_filled),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), softmax),
    **dict.fromkeys(
        (
            "sum",
            "mean",
            "amax",
            "amin",
            "max",
            "min",
            "var",
            "std",
            "argmax",
            "norm",
            "any",
            "all",
            "prod",
            "logsumexp",
        ),
        reduce,
    ),
    **dict.fromkeys(
        (
            f"{kind}_pool{n}d{more}"
            for kind in ("avg", "max", "adaptive_avg", "adaptive_max", "lp")
            for n in (1, 2, 3)
            for more in ("", "_with_indices")
        ),
        pool,
    ),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "upsample_nearest1d", "upsample_linear1d"), pool),
    **dict.fromkeys(("matmul", "bmm", "mm"), matmul),
    "baddbmm": baddbmm,
    "einsum": einsum,
    "glu": glu,
    "cumsum": cumulative,
    "diff": difference,
    **dict.fromkeys(("arange", "zeros", "ones", "full", "empty", "scalar_tensor", "eye", "rand", "randn"), made),
    **dict.fromkeys(("new_ones", "new_zeros", "new_full", "new_empty"), made),
    **dict.fromkeys(("ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli"), like),
}
