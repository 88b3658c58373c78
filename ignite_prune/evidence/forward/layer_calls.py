"""Calls of linear and convolutional layers with a selected weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ignite_prune._utils.nested import tensors_in
from ignite_prune.evidence.forward.op_tables import CONVOLUTIONS, PASSING, SHAPING, Call, attribute, turns
from ignite_prune.evidence.forward.tensor_tags import TensorTags, Weight


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a layer with a selected weight, with what it takes to unfold a convolution's input.

    Attributes:
        kind: ``"linear"``, ``"matmul"`` (also mm, addmm and ``@``), ``"conv1d"`` ... ``"conv_transpose3d"``.
        input: the layer's input: (..., in) for a linear layer, (batch, in, *space) or (in, *space) for a convolution.
        output: the result of the call, which a later in-place operation may overwrite; None before the call.
        stride: of a convolution, one a dim; () for a linear layer.
        padding: of a convolution, one a dim, or ``"same"`` or ``"valid"``.
        dilation: of a convolution, one a dim.
        groups: of a convolution.
        transposed: whether dim 1 of the weight holds its output units: ``x @ w`` and transposed convolutions.
        rows: the rows (first, last + 1) of the weight that the call uses; None for all. Cross attention uses the
            parts of a packed ``in_proj_weight`` in separate calls.
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


def used_weight(call: Call, tags: TensorTags) -> Weight | None:
    """Return the selected weight of a layer call; None for other calls."""
    weight = None
    if call.op == "linear" or call.op in CONVOLUTIONS:
        weight = call.argument(1, "weight")
    elif call.op in _PRODUCTS:
        _, _, position, name = _PRODUCTS[call.op]
        weight = call.argument(position, name)
    tag = tags.of(weight) if isinstance(weight, Tensor) else None
    return None if tag is None else tag.weight


def read_layer_call(call: Call, weight: Weight) -> LayerCall:
    """Return the record of a layer call, before it runs; ``weight`` is from :func:`used_weight`."""
    if call.op == "linear":
        return LayerCall("linear", call.input, transposed=weight.turned, rows=weight.rows)
    if call.op in _PRODUCTS:
        position, name, _, _ = _PRODUCTS[call.op]
        taken = call.argument(position, name)
        return LayerCall("matmul", taken, transposed=not weight.turned, rows=weight.rows)
    dims = int(call.op[-2])
    transposed = "transpose" in call.op
    dilation, groups = (7, 6) if transposed else (5, 6)
    padding = call.argument(4, "padding", 0)
    return LayerCall(
        call.op,
        call.input,
        stride=_tuple(call.argument(3, "stride", 1), dims),
        padding=padding if isinstance(padding, str) else _tuple(padding, dims),
        dilation=_tuple(call.argument(dilation, "dilation", 1), dims),
        groups=call.argument(groups, "groups", 1),
        transposed=transposed,
        rows=weight.rows,
    )


def derive(call: Call, result: object, tags: TensorTags) -> bool:
    """Tag the result of a cast, a transpose or a split of a selected weight; return False for another operation."""
    subject = call.input
    tag = tags.of(subject) if isinstance(subject, Tensor) else None
    weight = None if tag is None else tag.weight
    if weight is None:
        return False
    made = [tensor for tensor in tensors_in(result) if tensor is not subject]
    parts = [_derived(call, weight, tensor) for tensor in made]
    for tensor, part in zip(made, parts):
        if part is not None:
            tags.at(tensor).weight = part
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
    """Return the rows of a weight that ``part`` is a view of, or None."""
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
