"""Rules of layers, which produce units (output channels) and consume them (input channels)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ignite_prune.structure.tracing.rules.op import Op, Rule
from ignite_prune.structure.tracing.rules.products import contracted
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor, fixed
from ignite_prune.structure.tracing.zero import Zero


def linear(op: Op, x: TracedTensor, weight: TracedTensor, bias: TracedTensor | None = None) -> TracedTensor:
    outputs, inputs = weight.dims
    op.makes.append(outputs)
    op.tie(x.dims[-1], inputs)
    contracted(op, inputs, weight, x)
    if bias is not None:
        op.tie(outputs, bias.dims[0])
    return TracedTensor((*x.dims[:-1], outputs), _zero(op, x.dims[:-1], weight, bias))


def _zero(op: Op, others: Sequence[Dim], *made_by: TracedTensor | None) -> Zero:
    """Return whether a layer's output is 0 for pruned units: weight and bias are, and no other dimension has units."""
    is_zero = all(each.zero for each in made_by if each is not None) and all(map(op.is_frozen, others))
    return Zero.COMPUTED if is_zero else Zero.NO


def addmm(op: Op, bias: TracedTensor, x: TracedTensor, weight: TracedTensor, **kwargs: Any) -> TracedTensor:
    op.tie(x.dims[1], weight.dims[0])
    contracted(op, weight.dims[0], weight, x)
    op.tie(weight.dims[1], bias.dims[-1])
    op.makes.append(weight.dims[1])
    return TracedTensor((x.dims[0], weight.dims[1]), _zero(op, x.dims[:1], weight, bias))


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
        contracted(op, weight.dims[1], weight, x)
    return _convolved(op, x, weight, batch, outputs, bias)


def conv_transpose(
    op: Op, x: TracedTensor, weight: TracedTensor, bias: TracedTensor | None = None, *args: Any, **kwargs: Any
) -> TracedTensor:
    groups = kwargs.get("groups", args[3] if len(args) > 3 else 1)
    batch = len(x.dims) - len(weight.dims) + 1
    inputs, outputs = weight.dims[:2]
    op.tie(x.dims[batch], inputs)
    if groups == len(inputs) > 1:  # depthwise: each input channel has its own output channels
        op.units.freeze(outputs, f"{op.label} is depthwise")
        outputs = inputs.repeat_interleave(len(outputs))
    else:
        contracted(op, inputs, weight, x)
        op.makes.append(outputs)
        if groups > 1:  # each group loses equally many
            parts = inputs.view(groups, -1)
            op.units.tie(parts, parts[:1], op.label)
            outputs = outputs.repeat(groups)
    return _convolved(op, x, weight, batch, outputs, bias)


def convolution(op: Op, x: TracedTensor, weight: TracedTensor, bias: TracedTensor | None, *args: Any) -> TracedTensor:
    """Convolution of either kind, as torch has it in decomposed graphs."""
    *_, transposed, _, groups = args
    return (conv_transpose if transposed else conv)(op, x, weight, bias, groups=groups)


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
    return TracedTensor((*x.dims[:batch], outputs, *(fixed(size) for size in space)), _zero(op, (), weight, bias))


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
    """Batch norm, also of a weight ``(1, out, rest)``, which is standardised over the rest, as in BiT and NFNet."""
    for each in args[:4]:
        if isinstance(each, TracedTensor):
            op.tie(x.dims[1], each.dims[0])
    affine = [each for each in args[:2] if isinstance(each, TracedTensor)]
    if x.zero == Zero.MASKED and x.shape[0] == 1 and len(x.dims) == 3:
        if op.through_norms:
            op.normalised = x.dims[2]
        else:
            op.freeze(x.dims[2], "normalises over it")
        return TracedTensor(x.dims, Zero.COMPUTED if len(args) < 2 or args[1] is None else Zero.NO)
    for dim in (x.dims[0], *x.dims[2:]):
        op.freeze(dim, "takes statistics over it")
    return TracedTensor(x.dims, _zero(op, (), *affine) if affine else Zero.NO)


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
        op.written(shape[0], x.dims[-1])
        return TracedTensor(x.dims, _zero(op, x.dims[:-1], weight, bias))
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
    elif groups == len(x.dims[1]):  # one channel per group
        if not isinstance(op.module, nn.GroupNorm) or weight is None:
            op.freeze(x.dims[1], "has one group per channel")
    else:
        op.freeze(x.dims[1], "normalises over it")
    return TracedTensor(x.dims)


def instance_norm(op: Op, x: TracedTensor, *args: Any) -> TracedTensor:
    return batch_norm(op, x, *args)


def embedding(op: Op, weight: TracedTensor, indices: TracedTensor, *args: Any) -> TracedTensor:
    op.freeze(weight.dims[0], "indexes its rows")
    op.makes.append(weight.dims[1])
    return TracedTensor((*indices.dims, weight.dims[1]), _zero(op, indices.dims, weight))


def embedding_bag(op: Op, weight: TracedTensor, indices: TracedTensor, *args: Any, **kwargs: Any) -> list[TracedTensor]:
    op.freeze(weight.dims[0], "indexes its rows")
    op.makes.append(weight.dims[1])
    bags = TracedTensor((fixed(op.shapes[0][0]), weight.dims[1]), _zero(op, (), weight))
    return [bags, *(TracedTensor.fixed(shape) for shape in op.shapes[1:])]


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
    return TracedTensor((*query.dims[:-1], value.dims[-1]), min(value.zero, Zero.COMPUTED))


def weight_norm(op: Op, direction: TracedTensor, length: TracedTensor, dim: int = 0) -> TracedTensor:
    """Weight normalised to a learnt length: a norm over its other dimensions, in which zeros change nothing."""
    for d, (a, b) in enumerate(zip(direction.dims, length.dims)):
        if d == dim:
            op.freeze(a, "divides by its length, which is 0 where it is masked")
            op.tie(a, b)
        else:
            contracted(op, a, direction)
            op.freeze(b, "holds one length for all of it")
    return TracedTensor(direction.dims, direction.zero)


RULES: dict[str, Rule] = {
    "linear": linear,
    "addmm": addmm,
    "convolution": convolution,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "embedding": embedding,
    **dict.fromkeys(("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"), embedding_bag),
    "prelu": prelu,
    "scaled_dot_product_attention": attention,
    "_weight_norm": weight_norm,
}
