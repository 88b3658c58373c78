"""Rules of operations that read or write entries at given positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite_prune.structure.tracing.rules.op import Op, Rule
from ignite_prune.structure.tracing.rules.pointwise import tied_broadcast
from ignite_prune.structure.tracing.traced_tensor import TracedTensor, fixed
from ignite_prune.structure.tracing.zero import Zero


def index(op: Op, x: TracedTensor, indices: Sequence[TracedTensor | None]) -> TracedTensor:
    """Advanced indexing in adjacent dimensions, which are frozen; the other dimensions are passed through."""
    first, last = _indexed(op, x, indices)
    rank = len(op.shapes[0]) - (len(x.dims) - (last - first))
    shape = op.shapes[0][first : first + rank]
    return TracedTensor((*x.dims[:first], *(fixed(n) for n in shape), *x.dims[last:]), x.zero)


def index_put(
    op: Op, x: TracedTensor, indices: Sequence[TracedTensor | None], values: TracedTensor, *args: Any
) -> TracedTensor:
    """Values written, or added, at indices in adjacent dimensions; the dimensions after these are passed through."""
    first, last = _indexed(op, x, indices)
    rest = tied_broadcast(op, [x.dims[last:], values.dims[len(values.dims) - (len(x.dims) - last) :]])
    for dim in values.dims[: len(values.dims) - (len(x.dims) - last)]:
        op.freeze(dim, "writes at indices")
    for dim in x.dims[:first]:
        op.freeze(dim, "writes at indices")
    return TracedTensor((*x.dims[:last], *rest), min(x.zero, values.zero))


def _indexed(op: Op, x: TracedTensor, indices: Sequence[TracedTensor | None]) -> tuple[int, int]:
    """Freeze the indexed dimensions, and return the first and one past the last of them.

    Raises:
        ValueError: they are not adjacent.
    """
    taken, at = list[int](), 0
    for each in indices:
        span = 1 if each is None or not op.is_mask(each) else len(each.dims)  # a mask takes several dimensions
        taken += range(at, at + span) if each is not None else ()
        at += span
    if taken != list(range(taken[0], taken[-1] + 1)):
        raise ValueError("indices in dimensions that are not adjacent")
    for each in indices:
        for dim in each.dims if each is not None else ():
            op.freeze(dim, "indexes with it")
    for d in taken:
        op.freeze(x.dims[d], "indexes it")
    return taken[0], taken[-1] + 1


def index_select(op: Op, x: TracedTensor, dim: int, index: TracedTensor) -> TracedTensor:
    at = dim % len(x.dims)
    op.freeze(x.dims[at], "indexes it")
    for its in index.dims:
        op.freeze(its, "indexes with it")
    return x.put(at, fixed(op.shapes[0][at]))


def index_written(op: Op, x: TracedTensor, dim: int, index: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor:
    """``index_add``, ``index_copy``, ``index_fill``, ``index_reduce``: along one dimension, which is frozen."""
    at = dim % len(x.dims)
    source = next((each for each in args if isinstance(each, TracedTensor) and each.dims), None)
    for its in (x.dims[at], *index.dims, *([] if source is None else [source.dims[at]])):
        op.freeze(its, "writes at indices")
    zero = x.zero
    for d, ids in enumerate(source.dims if source is not None else ()):
        if d != at:
            op.tie(x.dims[d], ids)
    if source is not None:
        zero = min(zero, source.zero)
    elif not all(each == 0 for each in args if isinstance(each, (int, float))):
        zero = Zero.NO
    return TracedTensor(x.dims, zero)


def gather(op: Op, x: TracedTensor, dim: int, index: TracedTensor, **kwargs: Any) -> TracedTensor:
    """Entries at positions along one dimension, which is frozen; in the others index and tensor have the same units."""
    at = dim % len(x.dims)
    _at_positions(op, at, x, index)
    return TracedTensor(tuple(fixed(len(ids)) if d == at else ids for d, ids in enumerate(index.dims)), x.zero)


def scatter(
    op: Op, x: TracedTensor, dim: int, index: TracedTensor, source: TracedTensor | float, *args: Any, **kwargs: Any
) -> TracedTensor:
    """Entries written, or added, at positions along one dimension, which is frozen."""
    at = dim % len(x.dims)
    _at_positions(op, at, x, index)
    if not isinstance(source, TracedTensor) or not source.dims:
        return TracedTensor(x.dims, x.zero if isinstance(source, (int, float)) and source == 0 else Zero.NO)
    _at_positions(op, at, source, index)
    return TracedTensor(x.dims, min(x.zero, source.zero))


def _at_positions(op: Op, at: int, x: TracedTensor, index: TracedTensor) -> None:
    for d, (ids, its) in enumerate(zip(x.dims, index.dims)):
        if d != at and len(ids) == len(its):
            op.tie(ids, its)
        else:
            op.freeze(ids, "takes some of it")
            op.freeze(its, "takes some with it")


def scattered(op: Op, x: TracedTensor, source: TracedTensor, dim: int = 0, *args: Any, **kwargs: Any) -> TracedTensor:
    """``select_scatter`` and ``slice_scatter``: a copy with a part along one dimension, which is frozen, replaced."""
    at = dim % len(x.dims)
    op.freeze(x.dims[at], "replaces a part of it")
    rest = [ids for d, ids in enumerate(source.dims) if d != at] if op.name == "slice_scatter" else source.dims
    for ids, its in zip((ids for d, ids in enumerate(x.dims) if d != at), rest):
        op.tie(ids, its)
    if op.name == "slice_scatter":
        op.freeze(source.dims[at], "takes it for a part")
    return TracedTensor(x.dims, min(x.zero, source.zero))


def of_data(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Results whose size depends on data: positions or entries of a tensor, all of whose dimensions are frozen."""
    values = [each for each in args if isinstance(each, TracedTensor)]
    found = op.freeze_all(values, "gives a size that depends on data")
    return found if op.several else found[0]


RULES: dict[str, Rule] = {
    "index": index,
    **dict.fromkeys(("index_put", "index_put_", "_unsafe_index_put"), index_put),
    "_unsafe_index": index,
    "index_select": index_select,
    **dict.fromkeys(
        (f"index_{kind}{place}" for kind in ("add", "copy", "fill", "reduce") for place in ("", "_")), index_written
    ),
    "gather": gather,
    **dict.fromkeys(("select_scatter", "slice_scatter"), scattered),
    **dict.fromkeys((f"scatter{kind}{place}" for kind in ("", "_add", "_reduce") for place in ("", "_")), scatter),
    **dict.fromkeys(("nonzero", "masked_select", "bincount", "histc", "unique_dim", "_unique2", "bucketize"), of_data),
    **dict.fromkeys(("searchsorted", "isin", "nonzero_numpy", "argwhere"), of_data),
}
