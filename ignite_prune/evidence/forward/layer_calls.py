"""A use of a selected weight: which calls are layers, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ignite_prune.evidence.forward.op_tables import CONVOLUTIONS, PASSING, SHAPING, Call, attribute, tensors_in, turns
from ignite_prune.evidence.forward.tensor_tags import Notes, Weight


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a weight by a layer: enough to unfold a convolution's input.

    Attributes:
        kind: ``"linear"``, ``"matmul"`` (also mm, addmm and ``@``), ``"conv1d"`` ... ``"conv_transpose3d"``.
        input: what went in; for a linear use (..., in), for a convolution (batch, in, *space) or without a batch.
        output: what came out, the call's own result; an in-place operation may overwrite it; None before.
        stride: of a convolution, one a dim; () for a linear use.
        padding: of a convolution, one a dim, or ``"same"`` or ``"valid"``.
        dilation: of a convolution, one a dim.
        groups: of a convolution.
        transposed: whether the weight's output units lie along its dim 1: ``x @ w`` and transposed convolutions.
        rows: which rows (first, last + 1) of the weight were used; None for all. Cross attention uses the parts of
            a packed ``in_proj_weight`` one by one.
    """

    kind: str
    input: Tensor
    output: Any = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    rows: tuple[int, int] | None = None


_PRODUCTS = {"matmul": (0, "input", 1, "other"), "mm": (0, "input", 1, "mat2"), "addmm": (1, "mat1", 2, "mat2")}


def used_weight(call: Call, notes: Notes) -> Weight | None:
    """Return the selected weight that a call uses as a layer does; None if it uses none, or otherwise."""
    weight = None
    if call.op == "linear" or call.op in CONVOLUTIONS:
        weight = call.argument(1, "weight")
    elif call.op in _PRODUCTS:
        _, _, position, name = _PRODUCTS[call.op]
        weight = call.argument(position, name)
    note = notes.of(weight) if isinstance(weight, Tensor) else None
    return None if note is None else note.weight


def read_use(call: Call, weight: Weight) -> Use:
    """Return the record of a call that :func:`used_weight` has found to be a layer, before it runs."""
    if call.op == "linear":
        return Use("linear", call.input, transposed=weight.turned, rows=weight.rows)
    if call.op in _PRODUCTS:
        position, name, _, _ = _PRODUCTS[call.op]
        taken = call.argument(position, name)
        return Use("matmul", taken, transposed=not weight.turned, rows=weight.rows)
    dims = int(call.op[-2])
    transposed = "transpose" in call.op
    dilation, groups = (7, 6) if transposed else (5, 6)
    padding = call.argument(4, "padding", 0)
    return Use(
        call.op,
        call.input,
        stride=_tuple(call.argument(3, "stride", 1), dims),
        padding=padding if isinstance(padding, str) else _tuple(padding, dims),
        dilation=_tuple(call.argument(dilation, "dilation", 1), dims),
        groups=call.argument(groups, "groups", 1),
        transposed=transposed,
        rows=weight.rows,
    )


def derive(call: Call, result: object, notes: Notes) -> bool:
    """Note what a cast, a transpose or a split makes of a selected weight; False if the call does something else."""
    subject = call.input
    note = notes.of(subject) if isinstance(subject, Tensor) else None
    weight = None if note is None else note.weight
    if weight is None:
        return False
    made = [tensor for tensor in tensors_in(result) if tensor is not subject]
    parts = [_derived(call, weight, tensor) for tensor in made]
    for tensor, part in zip(made, parts):
        if part is not None:
            notes.at(tensor).weight = part
    return None not in parts


def _derived(call: Call, weight: Weight, made: Tensor) -> Weight | None:
    if turns(call):
        whole = weight.parameter.dim() == 2 and weight.rows is None
        swapped = (made.shape, made.stride()) != (call.input.shape, call.input.stride())
        return Weight(weight.name, weight.parameter, turned=weight.turned != swapped) if whole else None
    if call.op in PASSING or call.op == "detach" or (call.op == "get" and attribute(call.func) == "data"):
        return weight
    return _rows(weight, made) if call.op in SHAPING else None


def _rows(weight: Weight, part: Tensor) -> Weight | None:
    """A weight's rows that ``part`` is a view of; None if it is anything else."""
    whole = weight.parameter
    if weight.turned or part.dim() != whole.dim() or part.shape[1:] != whole.shape[1:]:
        return None
    if part.stride() != whole.stride() or part.data_ptr() < whole.data_ptr():
        return None
    first = (part.storage_offset() - whole.storage_offset()) // max(1, whole.stride(0))
    return Weight(weight.name, whole, rows=(first, first + part.shape[0]))


def _tuple(value: int | tuple[int, ...] | list[int], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values
