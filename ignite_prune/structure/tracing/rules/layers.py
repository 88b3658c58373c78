"""Rules of layers, which produce units (output channels) and consume them (input channels)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite_prune.structure.tracing.rules.op import Op, Rule
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor, fixed


def linear(op: Op, x: TracedTensor, weight: TracedTensor, bias: TracedTensor | None = None) -> TracedTensor:
    outputs, inputs = weight.dims
    op.makes.append(outputs)
    op.tie(x.dims[-1], inputs)
    _summed(op, x, weight, inputs)
    if bias is not None:
        op.tie(outputs, bias.dims[0])
    return TracedTensor((*x.dims[:-1], outputs))


def _summed(op: Op, x: TracedTensor, weight: TracedTensor, inputs: Dim) -> None:
    """Freeze the contracted dimension unless one factor is a parameter, whose entries of pruned units are 0.

    A tensor computed from parameters, such as a normalised weight, need not be 0 there.
    """
    if not (x.zero or weight.zero):
        op.freeze(inputs, "sums over it, with a weight that its mask does not make 0")


def addmm(op: Op, bias: TracedTensor, x: TracedTensor, weight: TracedTensor, **kwargs: Any) -> TracedTensor:
    op.tie(x.dims[1], weight.dims[0])
    _summed(op, x, weight, weight.dims[0])
    op.tie(weight.dims[1], bias.dims[-1])
    op.makes.append(weight.dims[1])
    return TracedTensor((x.dims[0], weight.dims[1]))


def conv(
    op: Op, x: TracedTensor, weight: TracedTensor, bias: TracedTensor | None = None, *args: Any, **kwargs: Any
) -> TracedTensor:
    """Convolution: each group loses equally many channels; in a depthwise layer outputs are tied to their input."""
    groups = kwargs.get("groups", args[3] if len(args) > 3 else 1)
    outputs = weight.dims[0]
    op.makes.append(outputs)
    batch = len(x.dims) - len(weight.dims) + 1
    _grouped(op, x.dims[batch], weight.dims[1], outputs, groups)
    if len(weight.dims[1]) > 1 or groups == 1:
        _summed(op, x, weight, weight.dims[1])
    return _convolved(op, x, weight, batch, outputs, bias)


def conv_transpose(
    op: Op, x: TracedTensor, weight: TracedTensor, bias: TracedTensor | None = None, *args: Any, **kwargs: Any
) -> TracedTensor:
    groups = kwargs.get("groups", args[3] if len(args) > 3 else 1)
    batch = len(x.dims) - len(weight.dims) + 1
    op.tie(x.dims[batch], weight.dims[0])
    _summed(op, x, weight, weight.dims[0])
    outputs = weight.dims[1]
    op.makes.append(outputs)
    if groups > 1:
        op.freeze(weight.dims[0], "is in groups")
        op.freeze(outputs, "is in groups")
        outputs = fixed(len(outputs) * groups)
    return _convolved(op, x, weight, batch, outputs, bias)


def _convolved(
    op: Op, x: TracedTensor, weight: TracedTensor, batch: int, outputs: Dim, bias: TracedTensor | None
) -> TracedTensor:
    for kernel in weight.dims[2:]:
        op.freeze(kernel, "uses it as a kernel dimension")
    for each in (*x.dims[:batch], *x.dims[batch + 1 :]):
        op.freeze(each, "slides over it")
    if bias is not None:
        op.tie(outputs, bias.dims[0])
    space = op.shapes[0][batch + 1 :]
    return TracedTensor((*x.dims[:batch], outputs, *(fixed(size) for size in space)))


def _grouped(op: Op, inputs: Dim, within: Dim, outputs: Dim, groups: int) -> None:
    if groups == 1:
        op.tie(inputs, within)
        return
    if len(within) == 1:  # depthwise: each input channel has its own output channels
        op.tie(inputs.repeat_interleave(len(outputs) // groups), outputs)
        op.units.freeze(within, f"{op.label} is depthwise")
        return
    for each in (inputs, outputs):
        parts = each.view(groups, -1)
        op.units.tie(parts, parts[:1], op.label)
    op.tie(inputs.view(groups, -1)[0], within)


def batch_norm(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor:
    for each in args[:4]:
        if isinstance(each, TracedTensor):
            op.tie(x.dims[1], each.dims[0])
    for dim in (x.dims[0], *x.dims[2:]):
        op.freeze(dim, "takes statistics over it")
    return TracedTensor(x.dims)


def layer_norm(
    op: Op, x: TracedTensor, shape: Sequence[int], weight: TracedTensor | None = None, *args: Any, **kwargs: Any
) -> TracedTensor:
    """Layer norm: removing units changes the statistics, so the normalised dimensions are frozen by default."""
    bias = args[0] if args and isinstance(args[0], TracedTensor) else None
    for each in (weight, bias):
        for dim, other in zip(x.dims[-len(shape) :], each.dims if each is not None else ()):
            op.tie(dim, other)
    if op.through_norms and weight is not None and len(shape) == 1:
        op.normalised = x.dims[-1]
        return TracedTensor(x.dims)
    for dim in x.dims[-len(shape) :]:
        op.freeze(dim, "normalises over it")
    return TracedTensor(x.dims)


def group_norm(
    op: Op,
    x: TracedTensor,
    groups: int,
    weight: TracedTensor | None = None,
    bias: TracedTensor | None = None,
    *args: Any,
) -> TracedTensor:
    for each in (weight, bias):
        if each is not None:
            op.tie(x.dims[1], each.dims[0])
    if op.through_norms and weight is not None and groups < len(x.dims[1]):  # each group loses equally many
        parts = x.dims[1].view(groups, -1)
        op.tie(parts, parts[:1])
        op.normalised = x.dims[1]
    elif groups == len(x.dims[1]):  # one channel per group: num_groups would have to shrink too
        op.freeze(x.dims[1], "has one group per channel")
    else:
        op.freeze(x.dims[1], "normalises over it")
    return TracedTensor(x.dims)


def instance_norm(op: Op, x: TracedTensor, *args: Any) -> TracedTensor:
    return batch_norm(op, x, *args)


def embedding(op: Op, weight: TracedTensor, indices: TracedTensor, *args: Any) -> TracedTensor:
    op.freeze(weight.dims[0], "indexes its rows")
    op.makes.append(weight.dims[1])
    return TracedTensor((*indices.dims, weight.dims[1]))


def prelu(op: Op, x: TracedTensor, weight: TracedTensor) -> TracedTensor:
    if weight.shape[0] > 1:
        op.tie(x.dims[1], weight.dims[0])
    return TracedTensor(x.dims, x.zero)


def attention(
    op: Op,
    query: TracedTensor,
    key: TracedTensor,
    value: TracedTensor,
    mask: TracedTensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> TracedTensor:
    """Attention: query heads are tied to their key and value heads (also grouped ones); head size is frozen."""
    for one, other in ((key, value), (query, key)):
        for a, b in zip(one.dims[:-3], other.dims[:-3]):
            op.tie(a, b)
    if len(query.dims) > 2:
        queries, keys, values = query.dims[-3], key.dims[-3], value.dims[-3]
        op.tie(keys, values)
        op.tie(queries, keys.repeat_interleave(len(queries) // max(1, len(keys))))
    for each in (query, key):
        op.freeze(each.dims[-1], "scales by its size")
    for each in (query, key, value):
        op.freeze(each.dims[-2], "attends over it")
    if mask is not None:
        for a, b in zip(reversed(mask.dims[:-2]), reversed(query.dims[:-2])):
            if len(a) > 1:
                op.tie(a, b)
        for dim in mask.dims[-2:]:
            op.freeze(dim, "masks positions")
    return TracedTensor((*query.dims[:-1], value.dims[-1]))


def lstm(
    op: Op, x: TracedTensor, hidden: Sequence[TracedTensor], weights: Sequence[TracedTensor], *args: Any
) -> list[TracedTensor]:
    return _recurrent(op, x, hidden, weights, args, gates=4)


def gru(
    op: Op, x: TracedTensor, hidden: TracedTensor, weights: Sequence[TracedTensor], *args: Any
) -> list[TracedTensor]:
    return _recurrent(op, x, [hidden], weights, args, gates=3)


def _recurrent(
    op: Op,
    x: TracedTensor,
    hidden: Sequence[TracedTensor],
    weights: Sequence[TracedTensor],
    args: Sequence[Any],
    gates: int,
) -> list[TracedTensor]:
    """Recurrent layer: the gates of a hidden unit are tied, and so are all layers, which share one hidden_size."""
    biased, layers, _, _, bidirectional = args[0], args[1], *args[2:5]
    directions = 2 if bidirectional else 1
    per = 4 if biased else 2
    if len(weights) != per * layers * directions:
        return op.freeze_all([x, *hidden, *weights], "has projections")
    for dim in (*x.dims[:-1], *(dim for state in hidden for dim in state.dims[:-1])):
        op.freeze(dim, "iterates over it")
    below, unit = x.dims[-1], weights[1].dims[1]
    for layer in range(layers):
        for direction in range(directions):
            first = per * (layer * directions + direction)
            into, within, *biases = weights[first : first + per]
            op.makes.append(into.dims[0])
            op.tie(below, into.dims[1])
            op.tie(unit, within.dims[1])
            for each in (into, within, *biases):
                op.tie(each.dims[0], unit.repeat(gates))
        below = unit.repeat(directions)
    for state in hidden:
        if not op.is_frozen(state.dims[-1]):  # an initial state that is a parameter, not zeros of the hidden size
            op.tie(state.dims[-1], unit)
    out = TracedTensor((*x.dims[:-1], below))
    return [out, *(TracedTensor((*(fixed(n) for n in op.shapes[1][:-1]), unit)) for _ in hidden)]


RULES: dict[str, Rule] = {
    "linear": linear,
    "addmm": addmm,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "embedding": embedding,
    "prelu": prelu,
    "scaled_dot_product_attention": attention,
    "lstm": lstm,
    "gru": gru,
}
