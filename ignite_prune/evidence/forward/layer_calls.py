"""Calls of linear and convolutional layers with a selected weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ignite_prune._utils.nested import tensors_in
from ignite_prune.evidence.forward.op_tables import CONVOLUTIONS, PASSING, SHAPING, Call
from ignite_prune.evidence.forward.tensor_tags import TensorTags, Weight


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a layer with a selected weight, with what it takes to unfold a convolution's input.

    Attributes:
        name: of the weight.
        kind: ``"linear"``, ``"matmul"`` (also mm, addmm and ``@``), ``"conv1d"`` ... ``"conv_transpose3d"``.
        input: the layer's input: (..., in) for a linear layer, (batch, in, *space) or (in, *space) for a convolution.
        transposed: whether dim 1 of the weight holds its output units: ``x @ w`` and transposed convolutions.
        rows: the rows (first, last + 1) of the weight that the call uses; None for all. Cross attention uses the
            parts of a packed ``in_proj_weight`` in separate calls.
        stride: of a convolution, one a dim, as ``dilation`` and ``padding``, which may also be a name.
    """

    name: str
    kind: str
    input: Tensor
    transposed: bool
    rows: tuple[int, int] | None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def unit_dim(self) -> int:
        """The dim of the output's units, counted from the end."""
        return -(int(self.kind[-2]) + 1) if self.kind in CONVOLUTIONS else -1


_WEIGHT = {"linear": (1, "weight"), "matmul": (1, "other"), "mm": (1, "mat2"), "addmm": (2, "mat2")}
_WEIGHT |= dict.fromkeys(CONVOLUTIONS, (1, "weight"))


def layer_call_of(call: Call, tags: TensorTags) -> LayerCall | None:
    """Return the record of a call of a layer with a selected weight, before it runs; None for other calls."""
    tag = tags.of(call.argument(*_WEIGHT[call.op])) if call.op in _WEIGHT else None
    if tag is None or tag.weight is None:
        return None
    weight, op = tag.weight, call.op
    if op == "linear":
        return LayerCall(weight.name, op, call.input, weight.turned, weight.rows)
    if op not in CONVOLUTIONS:
        taken = call.argument(1, "mat1") if op == "addmm" else call.input
        return LayerCall(weight.name, "matmul", taken, not weight.turned, weight.rows)
    dims, transposed, padding = int(op[-2]), "transpose" in op, call.argument(4, "padding", 0)
    return LayerCall(
        weight.name,
        op,
        call.input,
        transposed,
        weight.rows,
        stride=_tuple(call.argument(3, "stride", 1), dims),
        padding=padding if isinstance(padding, str) else _tuple(padding, dims),
        dilation=_tuple(call.argument(7 if transposed else 5, "dilation", 1), dims),
        groups=call.argument(6, "groups", 1),
    )


def derive(call: Call, result: object, tags: TensorTags) -> bool:
    """Tag the result of a cast, a transpose or a split of a selected weight; return False for another operation."""
    subject = call.input
    tag = tags.of(subject)
    if tag is None or tag.weight is None:
        return False
    made = [tensor for tensor in tensors_in(result) if tensor is not subject]
    parts = [_derived(call, tag.weight, tensor) for tensor in made]
    for tensor, part in zip(made, parts):
        if part is not None:
            tags.at(tensor).weight = part
    return None not in parts


def _derived(call: Call, weight: Weight, made: Tensor) -> Weight | None:
    if call.turns:
        whole = weight.parameter.dim() == 2 and weight.rows is None
        swapped = (made.shape, made.stride()) != (call.input.shape, call.input.stride())
        return Weight(weight.name, weight.parameter, turned=weight.turned != swapped) if whole else None
    if call.op in PASSING or call.op == "detach" or (call.op == "get" and call.attribute == "data"):
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
