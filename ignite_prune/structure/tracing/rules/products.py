"""Rules of matrix products and other contractions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite_prune.structure.tracing.rules.op import Op, Rule
from ignite_prune.structure.tracing.rules.pointwise import tied_broadcast
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor
from ignite_prune.structure.tracing.zero import Zero


def contracted(op: Op, dim: Dim, *factors: TracedTensor) -> None:
    """Freeze a contracted dimension unless a factor is 0 for pruned units."""
    zero = max(each.zero for each in factors)
    if zero == Zero.COMPUTED:
        op.on_trial(dim)
    elif not zero:
        op.freeze(dim, "sums over it, with weights that no mask makes 0" if op.name == "linear" else "sums over it")


def matmul(op: Op, first: TracedTensor, second: TracedTensor) -> TracedTensor:
    """Matrix product, also with vectors."""
    rows, columns = len(first.dims) > 1, len(second.dims) > 1
    op.tie(first.dims[-1], second.dims[-2 if columns else -1])
    contracted(op, first.dims[-1], second, first)
    if second.zero and columns:
        op.makes.append(second.dims[-1])
    outer = tied_broadcast(op, [first.dims[:-2], second.dims[:-2]])
    dims = (*outer, *(first.dims[-2:-1] if rows else ()), *(second.dims[-1:] if columns else ()))
    return TracedTensor(dims, _zero(op, dims, first, second))


def _zero(op: Op, dims: Sequence[Dim], *factors: TracedTensor) -> Zero:
    """Return whether a product is 0 for pruned units: those in its dimensions, each of which is from one factor."""
    moving = [dim for dim in dims if not op.is_frozen(dim)]
    zeros = [
        max(each.zero for each in factors if any(dim is its for its in each.dims))
        for dim in moving
        if any(dim is its for each in factors for its in each.dims)
    ]
    return min(zeros) if zeros and len(zeros) == len(moving) else Zero.NO


def dot(op: Op, first: TracedTensor, second: TracedTensor) -> TracedTensor:
    op.tie(first.dims[0], second.dims[0])
    contracted(op, first.dims[0], first, second)
    return TracedTensor(())


def baddbmm(op: Op, bias: TracedTensor, first: TracedTensor, second: TracedTensor, **kwargs: Any) -> TracedTensor:
    product = matmul(op, first, second)
    return TracedTensor(tied_broadcast(op, [bias.dims, product.dims]), min(bias.zero, product.zero))


def grouped_mm(op: Op, x: TracedTensor, weight: TracedTensor, ends: TracedTensor, *args: Any) -> TracedTensor:
    """Rows ``(rows, in)`` times one of several matrices ``(experts, in, out)`` each, by the last row of each expert."""
    for dim in (x.dims[0], weight.dims[0], ends.dims[0]):
        op.freeze(dim, "distributes rows over it")
    op.tie(x.dims[1], weight.dims[1])
    contracted(op, weight.dims[1], weight, x)
    op.makes.append(weight.dims[2])
    return TracedTensor((x.dims[0], weight.dims[2]), min(weight.zero, Zero.COMPUTED))


def einsum(op: Op, equation: str, tensors: Sequence[TracedTensor], **kwargs: Any) -> TracedTensor:
    """Einsum: dimensions with the same letter are tied; contracted ones are treated as in ``matmul``."""
    inputs, letters = letters_of(equation, [len(each.dims) for each in tensors])
    if any(len(set(each)) < len(each) for each in inputs):
        return op.freeze_all(tensors, "takes a diagonal")[0]
    dims: dict[str, Dim] = {}
    for each, tensor in zip(inputs, tensors):
        for letter, dim in zip(each, tensor.dims):
            dims[letter] = dim if letter not in dims else tied_broadcast(op, [[dims[letter]], [dim]])[0]
    for letter in dims.keys() - set(letters):
        contracted(op, dims[letter], *(tensor for each, tensor in zip(inputs, tensors) if letter in each))
    zeros = [
        max(tensor.zero for each, tensor in zip(inputs, tensors) if letter in each)
        for letter in letters
        if not op.is_frozen(dims[letter])
    ]
    for each, tensor in zip(inputs, tensors):  # a weight's dimension in the result alone makes units
        if tensor.zero == Zero.MASKED:
            op.makes.extend(
                dim
                for letter, dim in zip(each, tensor.dims)
                if letter in letters and sum(letter in its for its in inputs) == 1
            )
    return TracedTensor(tuple(dims[letter] for letter in letters), min(zeros) if zeros else Zero.NO)


def letters_of(equation: str, ranks: Sequence[int] = ()) -> tuple[list[str], str]:
    """Return the letters of each operand and of the result; an implicit result has the letters that occur once.

    Args:
        equation: of ``torch.einsum``.
        ranks: dimensions of each operand; what ``...`` stands for is written out with digits, aligned on the right.

    Example:
        >>> letters_of("bij, bjk")
        (['bij', 'bjk'], 'ik')
        >>> letters_of("...i, oi -> ...o", [3, 2])
        (['01i', 'oi'], '01o')
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    more = [max(0, rank - len(each.replace("...", ""))) for each, rank in zip(inputs, ranks)]
    widest = "".join(chr(ord("0") + k) for k in range(max(more, default=0)))
    inputs = [
        each.replace("...", widest[len(widest) - count :]) if "..." in each else each
        for each, count in zip(inputs, more or [0] * len(inputs))
    ]
    once = (letter for letter in set("".join(inputs)) - set(widest) if "".join(inputs).count(letter) == 1)
    return inputs, right.replace("...", widest) if arrow else widest + "".join(sorted(once))


def distances(op: Op, first: TracedTensor, second: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor:
    """Distances of all pairs of rows: a unit that is 0 in both adds nothing."""
    op.tie(first.dims[-1], second.dims[-1])
    contracted(op, first.dims[-1], min(first, second, key=lambda each: each.zero))
    outer = tied_broadcast(op, [first.dims[:-2], second.dims[:-2]])
    return TracedTensor((*outer, first.dims[-2], second.dims[-2]))


def bilinear(
    op: Op, first: TracedTensor, second: TracedTensor, weight: TracedTensor, bias: TracedTensor | None = None
) -> TracedTensor:
    outputs = weight.dims[0]
    op.makes.append(outputs)
    for x, dim in ((first, weight.dims[1]), (second, weight.dims[2])):
        op.tie(x.dims[-1], dim)
        contracted(op, dim, weight, x)
    if bias is not None:
        op.tie(outputs, bias.dims[0])
    outer = tied_broadcast(op, [first.dims[:-1], second.dims[:-1]])
    return TracedTensor((*outer, outputs))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "mv"), matmul),
    **dict.fromkeys(("dot", "vdot", "inner"), dot),
    "baddbmm": baddbmm,
    **dict.fromkeys(("_grouped_mm", "transformers::grouped_mm_fallback"), grouped_mm),
    "einsum": einsum,
    **dict.fromkeys(("_cdist_forward", "cdist"), distances),
    "bilinear": bilinear,
}
