"""Rules of reductions, of functions along a dimension, and of pooling and resampling in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite_prune.structure.tracing.rules.op import Op, Rule
from ignite_prune.structure.tracing.rules.pointwise import pointwise
from ignite_prune.structure.tracing.rules.products import contracted
from ignite_prune.structure.tracing.traced_tensor import TracedTensor, fixed
from ignite_prune.structure.tracing.zero import Zero


def along(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> Any:
    """Functions along one or more dimensions, which are frozen: softmax, cumsum, sort, topk, fft, flip, ..."""
    dims = _dims(op, x)
    for d in dims:
        op.freeze(x.dims[d], "works along it")
    keeps = len(op.shapes[0]) == len(x.dims)
    kept = [(d, ids) for d, ids in enumerate(x.dims) if keeps or d not in dims]
    found = tuple(ids if d not in dims else fixed(n) for (d, ids), n in zip(kept, op.shapes[0]))
    return _outputs(op, TracedTensor(found, x.zero if op.name in _ALONG_ZEROS else Zero.NO))


def _outputs(op: Op, first: TracedTensor) -> Any:
    """Return the output, or a list of outputs of the same dimensions, such as positions."""
    return [first, *(TracedTensor(first.dims) for _ in op.shapes[1:])] if op.several else first


def _dims(op: Op, x: TracedTensor) -> set[int]:
    """Return the dimensions that an operation names, counted from 0; all if it names none."""
    given = op.named.get("dim", op.named.get("dims"))
    if given is None or given == []:
        return set(range(len(x.dims)))
    return {d % len(x.dims) for d in ([given] if isinstance(given, int) else given)} if x.dims else set()


def reduce(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> Any:
    """Reductions (sum, mean, max, ...): units along a reduced dimension are frozen, unless they are summed and the
    entries of pruned units are 0, or the statistics of a norm that is written out.

    ``min`` and ``max`` of two tensors are elementwise.
    """
    if args and isinstance(args[0], TracedTensor):
        return pointwise(op, x, *args)
    gone, keep = _dims(op, x), bool(op.named.get("keepdim"))
    moving = [d for d in gone if not op.is_frozen(x.dims[d])]
    for d in moving:
        if op.name in _STATISTICS and op.writes_norm and len(moving) == 1 and op.normalised is None:
            op.normalised = x.dims[d]
            op.on_trial(x.dims[d])
        elif _sums(op):
            contracted(op, x.dims[d], x)
        else:
            op.freeze(x.dims[d], "reduces it")
    dims = [fixed(1) if d in gone else ids for d, ids in enumerate(x.dims) if keep or d not in gone]
    out = TracedTensor(tuple(dims), x.zero if op.name in _OF_ZEROS else Zero.NO)
    return _outputs(op, out)


def _sums(op: Op) -> bool:
    """Return whether zeros change nothing: a sum, or a norm of positive order."""
    order = op.named.get("ord", op.named.get("p"))
    return op.name in ("sum", "count_nonzero", "any", "nansum") or (
        op.name in _NORMS and (order is None or (isinstance(order, (int, float)) and order >= 0))
    )


def spatial(op: Op, x: TracedTensor, *args: Any, **kwargs: Any) -> Any:
    """Pooling and interpolation: the spatial dimensions are frozen."""
    space = next(n for n in (3, 2, 1) if f"{n}d" in op.name)
    for before in x.dims[-space:]:
        op.freeze(before, "works in space")
    for each in (each for each in (*args, *kwargs.values()) if isinstance(each, TracedTensor)):
        for a, b in zip(x.dims, each.dims if each.shape == x.shape else ()):  # positions to unpool to
            op.tie(a, b)
    return _outputs(op, TracedTensor((*x.dims[:-space], *(fixed(n) for n in op.shapes[0][-space:])), x.zero))


def sampled(op: Op, x: TracedTensor, grid: TracedTensor, *args: Any, **kwargs: Any) -> TracedTensor:
    for dim in (*x.dims[2:], *grid.dims):
        op.freeze(dim, "samples at positions")
    return TracedTensor((*x.dims[:2], *(fixed(n) for n in op.shapes[0][2:])), x.zero)


def difference(op: Op, x: TracedTensor, n: int = 1, dim: int = -1, *args: Any, **kwargs: Any) -> TracedTensor:
    """Differences along a dimension, which is frozen."""
    for each in (x, *args, *kwargs.values()):
        if isinstance(each, TracedTensor):
            op.freeze(each.dims[dim], "takes differences along it")
    at = dim % len(x.dims)
    return TracedTensor((*x.dims[:at], fixed(op.shapes[0][at]), *x.dims[at + 1 :]))


def glu(op: Op, x: TracedTensor, dim: int = -1) -> TracedTensor:
    """Gated linear unit: the two halves of the dimension are tied."""
    at = dim % len(x.dims)
    half, gate = x.dims[at].chunk(2)
    op.tie(half, gate)
    return x.put(at, half)


def unfold(op: Op, x: TracedTensor, dimension: int, size: int, step: int) -> TracedTensor:
    at = dimension % len(x.dims)
    op.freeze(x.dims[at], "takes windows of it")
    return TracedTensor((*x.dims[:at], fixed(op.shapes[0][at]), *x.dims[at + 1 :], fixed(size)), x.zero)


def im2col(op: Op, x: TracedTensor, kernel: Sequence[int], *args: Any) -> TracedTensor:
    """Windows of an image: the entries of a window that are of one channel are one unit."""
    *batch, channels, height, width = x.dims
    for dim in (height, width):
        op.freeze(dim, "takes windows of it")
    columns = channels.repeat_interleave(op.shapes[0][-2] // max(1, len(channels)))
    return TracedTensor((*batch, columns, fixed(op.shapes[0][-1])), x.zero)


def col2im(op: Op, x: TracedTensor, size: Sequence[int], kernel: Sequence[int], *args: Any) -> TracedTensor:
    *batch, columns, windows = x.dims
    op.freeze(windows, "joins windows")
    parts = columns.view(op.shapes[0][-3], -1)
    op.units.tie(parts, parts[:, :1], op.label)
    return TracedTensor((*batch, parts[:, 0], *(fixed(n) for n in op.shapes[0][-2:])), x.zero)


_NORMS = ("linalg_vector_norm", "norm", "frobenius_norm")
_STATISTICS = ("mean", "var", "std", "var_mean", "std_mean")
_OF_ZEROS = ("sum", "mean", "amax", "max", "nansum", "any", *_NORMS)
_ALONG_ZEROS = (
    "cumsum", "cumprod", "cummax", "cummin", "sort", "topk", "kthvalue", "mode", "flip", "roll", "rot90", "fft_fft",
    "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn", "fft_ifftn",
    "fft_rfftn", "fft_irfftn", "fft_fftshift", "fft_ifftshift", "renorm", "_fft_r2c", "_fft_c2r", "_fft_c2c",
)  # fmt: skip
_ALONG = ("softmax", "_softmax", "log_softmax", "_log_softmax", "softmin", "logcumsumexp", "argsort", *_ALONG_ZEROS)
_REDUCE = (
    "sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "argmax", "argmin", "any", "all",
    "prod", "logsumexp", "median", "nanmedian", "nanmean", "nansum", "aminmax", "quantile", "nanquantile",
    "count_nonzero", *_NORMS,
)  # fmt: skip
_POOLS = (
    f"{kind}_pool{n}d{more}"
    for kind in ("avg", "max", "adaptive_avg", "adaptive_max", "lp", "fractional_max")
    for n in (1, 2, 3)
    for more in ("", "_with_indices")
)
_UPSAMPLES = (
    f"{kind}{n}d{more}"
    for kind, each in (
        ("upsample_nearest", (1, 2, 3)), ("_upsample_nearest_exact", (1, 2, 3)), ("upsample_linear", (1,)),
        ("upsample_bilinear", (2,)), ("upsample_bicubic", (2,)), ("upsample_trilinear", (3,)),
        ("_upsample_bilinear", (2,)), ("_upsample_bicubic", (2,)), ("_upsample_lanczos", (2,)),
    )
    for n in each
    for more in ("", "_aa")
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ALONG, along),
    **dict.fromkeys(_REDUCE, reduce),
    **dict.fromkeys(_POOLS, spatial),
    **dict.fromkeys(_UPSAMPLES, spatial),
    **dict.fromkeys(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"), spatial),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), spatial),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), sampled),
    "glu": glu,
    "diff": difference,
    "unfold": unfold,
    "im2col": im2col,
    "col2im": col2im,
}
