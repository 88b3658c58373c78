"""Rules of operations that join tensors and take parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ignite_prune.structure.tracing.rules.op import Op, Rule
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor, fixed
from ignite_prune.structure.tracing.zero import Zero


def least_zero(op: Op, tensors: Sequence[TracedTensor]) -> Zero:
    """Return the least of the tensors that have units."""
    return min((each.zero for each in tensors if not all(map(op.is_frozen, each.dims))), default=Zero.NO)


def cat(op: Op, tensors: Sequence[TracedTensor], dim: int = 0) -> TracedTensor:
    tensors = [each for each in tensors if each.shape != (0,)]  # as torch does
    first, at = tensors[0], dim % len(tensors[0].dims)
    for other in tensors[1:]:
        for d, (a, b) in enumerate(zip(first.dims, other.dims)):
            if d != at:
                op.tie(a, b)
    joined = torch.cat([each.dims[at] for each in tensors])
    return TracedTensor((*first.dims[:at], joined, *first.dims[at + 1 :]), least_zero(op, tensors))


def stack(op: Op, tensors: Sequence[TracedTensor], dim: int = 0) -> TracedTensor:
    at = dim % (len(tensors[0].dims) + 1)
    for other in tensors[1:]:
        for a, b in zip(tensors[0].dims, other.dims):
            op.tie(a, b)
    dims = tensors[0].dims
    return TracedTensor((*dims[:at], fixed(len(tensors)), *dims[at:]), least_zero(op, tensors))


def chunk(op: Op, x: TracedTensor, chunks: int, dim: int = 0) -> list[TracedTensor]:
    """Split into equal parts, which are tied."""
    at = dim % len(x.dims)
    return _equal_parts(op, x, at, x.dims[at].chunk(chunks))


def _equal_parts(op: Op, x: TracedTensor, at: int, parts: Sequence[Dim]) -> list[TracedTensor]:
    if len({len(part) for part in parts}) == 1:
        for part in parts[1:]:
            op.tie(parts[0], part)
    else:
        op.freeze(x.dims[at], "cuts it into unequal parts")
    return [x.put(at, part) for part in parts]


def split(op: Op, x: TracedTensor, sizes: int | Sequence[int], dim: int = 0) -> list[TracedTensor]:
    """Split at positions: equal parts are tied, and a trial shows whether the program computes their size."""
    at = dim % len(x.dims)
    parts = x.dims[at].split(sizes if isinstance(sizes, int) else list(sizes))  # type: ignore[no-untyped-call]
    if len(parts) > 1 and (len({len(part) for part in parts}) > 1 or len(parts[0]) == 1):
        op.freeze(x.dims[at], "cuts it into parts of sizes that are written in the program")
    elif len(parts) > 1:
        _on_trial(op, x.dims[at], parts[0])
        return _equal_parts(op, x, at, parts)
    return [x.put(at, part) for part in parts]


def tensor_split(op: Op, x: TracedTensor, sections: Any, dim: int = 0) -> list[TracedTensor]:
    at = dim % len(x.dims)
    parts = x.dims[at].tensor_split(sections)
    if not isinstance(sections, int) and not op.is_frozen(x.dims[at]):
        _on_trial(op, x.dims[at], parts[0])
    return _equal_parts(op, x, at, parts)


def _on_trial(op: Op, dim: Dim, part: Dim) -> None:
    """Record that a dimension is cut at numbers: the program may compute them, which a trial shows."""
    op.on_trial(dim)
    op.written(len(part), part)


_PARTS = 4


def cut(
    op: Op, x: TracedTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> TracedTensor:
    """Slice: one of a few equal parts of a dimension, which are tied, or every second index; else it is frozen."""
    at = dim % len(x.dims)
    taken = x.dims[at][slice(start, end, step)]
    size, left = len(x.dims[at]), len(taken)
    if left == size or op.is_frozen(x.dims[at]):
        return x.put(at, taken)
    first = slice(start, end).indices(size)[0]
    parts = size // left if left > 1 and size % left == 0 else 0
    if parts not in range(2, _PARTS + 1) or (step == 1 and first % left) or step not in (1, parts):
        op.freeze(x.dims[at], "slices it")
        return x.put(at, taken)
    _on_trial(op, x.dims[at], taken)
    units = x.dims[at].view(parts, left) if step == 1 else x.dims[at].view(left, parts).t()
    op.units.tie(units[1:], units[:1], op.label)
    return x.put(at, taken)


def select(op: Op, x: TracedTensor, dim: int, index: int) -> TracedTensor:
    at = dim % len(x.dims)
    op.freeze(x.dims[at], "takes one index of it")
    return x.put(at)


def unbind(op: Op, x: TracedTensor, dim: int = 0) -> list[TracedTensor]:
    return [select(op, x, dim, i) for i in range(x.shape[dim])]


def pad(op: Op, x: TracedTensor, padding: Sequence[int], *args: Any, **kwargs: Any) -> TracedTensor:
    """Padding, which freezes the padded dimensions."""
    dims = list(x.dims)
    for k in range(len(padding) // 2):
        before, after, at = padding[2 * k], padding[2 * k + 1], len(dims) - 1 - k
        if before or after:
            op.freeze(dims[at], "pads it")
            dims[at] = fixed(op.shapes[0][at])
    return TracedTensor(tuple(dims), x.zero)


def narrow(op: Op, x: TracedTensor, dim: int, start: int, length: int) -> TracedTensor:
    return cut(op, x, dim, start, start + length)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "stack": stack,
    "chunk": chunk,
    **dict.fromkeys(("split", "split_with_sizes"), split),
    "tensor_split": tensor_split,
    **dict.fromkeys(("slice",), cut),
    "select": select,
    "unbind": unbind,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    **dict.fromkeys((f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)), pad),
    "narrow": narrow,
}
