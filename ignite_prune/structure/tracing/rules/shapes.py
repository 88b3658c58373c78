"""Rules of operations that reshape, permute, expand and shuffle tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ignite_prune.structure.tracing.attribute_reads import unit_rank
from ignite_prune.structure.tracing.reshape import reshaped
from ignite_prune.structure.tracing.rules.op import Op, Rule
from ignite_prune.structure.tracing.traced_tensor import Dim, TracedTensor, fixed
from ignite_prune.structure.tracing.zero import Zero


def reshape(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor:
    """Reshape: only a size that the program leaves open (-1) or reads from a width attribute may shrink."""
    asked = next((each for each in args if isinstance(each, (list, tuple))), ())
    sizes, free = op.shapes[0], None
    if op.name == "unflatten":
        start = args[0] % len(x.dims)
        asked = [*x.shape[:start], *args[1], *x.shape[start + 1 :]]
    if len(asked) == len(sizes) and -1 in asked:
        free = list(asked).index(-1)
    free = _units_at(op, asked, free)
    dims = reshaped(op.units, x.dims, sizes, free, op.label, partial(_guessed, op))
    if op.name != "flatten" and len(asked) == len(sizes):
        for size, ids in zip(asked, dims):
            if size != -1:
                op.written(size, ids)
    return TracedTensor(dims, x.zero)


def _guessed(op: Op, sizes: Sequence[int], dim: Dim) -> int:
    """Return which of several sizes written in the graph a program may compute from a width: the largest, on trial."""
    op.on_trial(dim)
    op.fixed_sizes.append(dim)
    op.guessed = True
    order = sorted(range(len(sizes)), key=lambda k: (-sizes[k], k))
    return order[1 if op.prefers_last else 0]


def _units_at(op: Op, asked: Sequence[int], free: int | None) -> int | None:
    """Return the position of the size that counts units, such as heads: by an attribute, or the open one."""
    ranks = {d: max(map(unit_rank, op.holding(size)), default=0) for d, size in enumerate(asked) if size > 1}
    best = max(ranks.values(), default=0)
    if best < (1 if free is None else 2):
        return free
    likely = [d for d, rank in ranks.items() if rank == best]
    op.ambiguous = len(likely) > 1
    return likely[-1 if op.prefers_last else 0]


def permute(op: Op, x: TracedTensor, order: Sequence[int]) -> TracedTensor:
    return TracedTensor(tuple(x.dims[i] for i in order), x.zero)


def transpose(op: Op, x: TracedTensor, first: int, second: int) -> TracedTensor:
    dims = list(x.dims)
    dims[first], dims[second] = dims[second], dims[first]
    return TracedTensor(tuple(dims), x.zero)


def reverse_dims(op: Op, x: TracedTensor) -> TracedTensor:
    return TracedTensor(x.dims[::-1], x.zero)


def movedim(op: Op, x: TracedTensor, source: int | Sequence[int], destination: int | Sequence[int]) -> TracedTensor:
    moved = [[at % len(x.dims) for at in ([each] if isinstance(each, int) else each)] for each in (source, destination)]
    rest = iter([d for d in range(len(x.dims)) if d not in moved[0]])
    back = dict(zip(moved[1], moved[0]))
    return TracedTensor(tuple(x.dims[back[d] if d in back else next(rest)] for d in range(len(x.dims))), x.zero)


def unsqueeze(op: Op, x: TracedTensor, dim: int) -> TracedTensor:
    at = dim % (len(x.dims) + 1)
    return TracedTensor((*x.dims[:at], fixed(1), *x.dims[at:]), x.zero)


def squeeze(op: Op, x: TracedTensor, dim: int | Sequence[int] | None = None) -> TracedTensor:
    asked = range(len(x.dims)) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % len(x.dims) for d in asked if x.shape[d] == 1} if x.dims else set()
    for d in gone:
        op.freeze(x.dims[d], "removes the dimension")
    return TracedTensor(tuple(ids for d, ids in enumerate(x.dims) if d not in gone), x.zero)


def expand(op: Op, x: TracedTensor, sizes: Sequence[int], **kwargs: Any) -> TracedTensor:
    """Expansion along new dimensions and those of size 1: a trial shows whether the program computes the sizes."""
    out, new = op.shapes[0], len(op.shapes[0]) - len(x.dims)
    dims = [op.open(size) for size in out[:new]]
    for ids, size in zip(x.dims, out[new:]):
        if len(ids) != size:
            op.freeze(ids, "expands it")
        dims.append(ids if len(ids) == size else op.open(size))
    for ids, asked in zip(dims, sizes):
        if asked != -1:
            op.written(asked, ids)
    return TracedTensor(tuple(dims), x.zero if all(map(op.is_frozen, dims[:new])) else Zero.NO)


def shaped_as(op: Op, x: TracedTensor, other: TracedTensor) -> TracedTensor:
    """Reshape or expand to the shape of another tensor, whose dimensions are tied to the result's."""
    if op.name == "expand_as":
        found = expand(op, x, [-1] * len(other.dims))
    else:
        found = TracedTensor(reshaped(op.units, x.dims, op.shapes[0], None, op.label), x.zero)
    for dim, its in zip(found.dims, other.dims):
        op.tie(dim, its)
    return found


def repeat(op: Op, x: TracedTensor, times: Sequence[int]) -> TracedTensor:
    new = len(times) - len(x.dims)
    dims = [op.open(n) for n in times[:new]]
    for ids, n in zip(x.dims, times[new:]):
        if len(ids) == 1 < n:
            op.freeze(ids, "repeats it")
        dims.append(op.open(n) if len(ids) == 1 else ids.repeat(n))
    return TracedTensor(tuple(dims), Zero.NO)


def repeat_interleave(op: Op, x: TracedTensor, times: Any, dim: int | None = None, **kwargs: Any) -> TracedTensor:
    """Repetition of each index in place, as in grouped-query attention; by a tensor, the dimension is frozen."""
    if dim is None:
        return op.freeze_all([x], "repeats its entries")[0]
    at = dim % len(x.dims)
    if isinstance(times, int):
        return x.put(at, x.dims[at].repeat_interleave(times))
    op.freeze(x.dims[at], "repeats its entries")
    return x.put(at, fixed(op.shapes[0][at]))


def diagonal(op: Op, x: TracedTensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> TracedTensor:
    """Diagonal of two dimensions, which are frozen."""
    gone = {dim1 % len(x.dims), dim2 % len(x.dims)}
    for d in gone:
        op.freeze(x.dims[d], "takes its diagonal")
    rest = tuple(ids for d, ids in enumerate(x.dims) if d not in gone)
    return TracedTensor((*rest, fixed(op.shapes[0][-1])), x.zero)


def parts_of_complex(op: Op, x: TracedTensor) -> TracedTensor:
    """Real and imaginary parts as a dimension, and back."""
    if op.name == "view_as_real":
        return TracedTensor((*x.dims, fixed(2)), x.zero)
    op.freeze(x.dims[-1], "takes it as real and imaginary parts")
    return TracedTensor(x.dims[:-1], x.zero)


def pixel_shuffle(op: Op, x: TracedTensor, factor: int) -> TracedTensor:
    """Pixel shuffle: the ``factor²`` channels that become one output channel are tied."""
    *rest, channels, height, width = x.dims
    groups = channels.view(-1, factor * factor)
    op.units.tie(groups, groups[:, :1], op.label)
    return TracedTensor((*rest, groups[:, 0], fixed(len(height) * factor), fixed(len(width) * factor)), x.zero)


def pixel_unshuffle(op: Op, x: TracedTensor, factor: int) -> TracedTensor:
    *rest, channels, height, width = x.dims
    spread = channels.repeat_interleave(factor * factor)
    return TracedTensor((*rest, spread, fixed(len(height) // factor), fixed(len(width) // factor)), x.zero)


def channel_shuffle(op: Op, x: TracedTensor, groups: int) -> TracedTensor:
    """Channel shuffle: each group loses equally many channels."""
    parts = x.dims[1].view(groups, -1)
    op.units.tie(parts, parts[:1], op.label)
    return TracedTensor((x.dims[0], parts.t().reshape(-1), *x.dims[2:]), x.zero)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "_unsafe_view"), reshape),
    "permute": permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose),
    **dict.fromkeys(("t", "numpy_T", "mT"), reverse_dims),
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    **dict.fromkeys(("movedim", "moveaxis"), movedim),
    **dict.fromkeys(("expand", "broadcast_to"), expand),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as"), shaped_as),
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
    "diagonal": diagonal,
    **dict.fromkeys(("view_as_real", "view_as_complex"), parts_of_complex),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
}
