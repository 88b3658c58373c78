"""Compression of masks: close to the entropy of random masks, and an index for N:M and block masks.

A random mask of density p needs H(p) bits an entry, 0.469 at p = 0.1. The gaps between its kept entries are distributed
geometrically, and Golomb-Rice codes, whose parameter is a power of two, take at most 5 % more than that for any p
(0.476 bits at p = 0.1). Unlike an arithmetic coder they need no loop over the entries: the low bits of all gaps are
stored as bit planes, their high bits as one mask (in unary, as in an Elias-Fano index), so that every step is one NumPy
operation over the whole array. Masks with structure are reduced first: a mask that is constant over blocks to one entry
per block, a mask with few distinct groups along a dimension (N:M) to a table of groups and an index per group.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_GROUPS = (4, 8, 16)
_BLOCKS = (64, 32, 16, 8, 4, 2)
_TABLE = 256  # groups that a table holds: all of 2:4 (6) and 4:8 (70)
_SAMPLE = 1 << 16


def encode(mask: Array) -> tuple[dict[str, Any], Array]:
    """Return a bool array as plain parameters of the code (JSON types), and its bytes (uint8).

    Example:
        >>> import numpy as np
        >>> params, data = encode(np.arange(64) % 9 == 0)
        >>> params["code"], data.nbytes, int(decode(params, data, (64,)).sum())
        ('rice', 5, 8)
    """
    import numpy as np

    kept = int(np.count_nonzero(mask))
    if kept in (0, mask.size):
        return {"code": "constant", "value": kept > 0}, np.empty(0, np.uint8)
    block = block_of(mask)
    if any(size > 1 for size in block):
        params, data = encode(np.ascontiguousarray(mask[tuple(slice(None, None, size) for size in block)]))
        return {"code": "blocks", "block": block, "of": params}, data
    found = groups_of(mask)
    candidates = [_grouped(mask, *found)] if found else []
    candidates.append(_bits(mask.reshape(-1)))
    if not 0.4 < kept / mask.size < 0.6:  # else a Rice code takes a bit per entry too
        candidates.append(_rice(mask.reshape(-1), kept))
    return min(candidates, key=lambda each: each[1].nbytes + 5 * len(each[0].get("table", ())))


def decode(params: Mapping[str, Any], data: Array, shape: Sequence[int]) -> Array:
    """Return the mask of :func:`encode`.

    Raises:
        ValueError: the code is unknown, or ``data`` is not the code of a mask of this shape.
    """
    import numpy as np

    size = int(np.prod(shape, dtype=np.int64))
    code = params["code"]
    if code == "constant" and isinstance(params["value"], bool) and not data.size:
        return np.full(shape, params["value"], dtype=bool)
    if code == "blocks":
        mask = decode(params["of"], data, [whole // part for whole, part in zip(shape, params["block"])])
        for dim, part in enumerate(params["block"]):
            mask = np.repeat(mask, part, axis=dim) if part > 1 else mask
        return mask
    if code == "groups":
        return _ungrouped(params, data, shape)
    if code == "rice":
        mask = np.full(size, params["inverted"], dtype=bool)
        mask[rice_positions(params, data, size)] = not params["inverted"]
        return mask.reshape(shape)
    if code in ("bits", "deflated bits"):
        raw = np.frombuffer(zlib.decompress(data.tobytes()), np.uint8) if code == "deflated bits" else data
        if raw.size != -(-size // 8):
            raise ValueError(f"a mask of {size} entries should have {-(-size // 8)} bytes, but has {raw.size}")
        return np.unpackbits(raw, count=size).view(bool).reshape(shape)
    raise ValueError(f"unknown code {code!r} of a mask")


def block_of(mask: Array) -> list[int]:
    """Return the largest block over which a mask is constant, as one size per dimension: powers of two, or all of it.

    Example:
        >>> import numpy as np
        >>> block_of(np.repeat(np.eye(4, dtype=bool), 2, axis=1))
        [1, 2]
    """
    block = []
    for dim, size in enumerate(mask.shape):
        fits = [part for part in (size, *_BLOCKS) if part > 1 and size % part == 0]
        part = next((part for part in fits if _constant(_some(mask, dim), dim, part) and _constant(mask, dim, part)), 1)
        block.append(part)
        mask = mask if part == 1 else mask[(slice(None),) * dim + (slice(None, None, part),)]
    return block


def _constant(mask: Array, dim: int, part: int) -> bool:
    groups = mask.reshape(*mask.shape[:dim], -1, part, *mask.shape[dim + 1 :])
    first = groups[(slice(None),) * (dim + 1) + (slice(1),)]
    return bool((groups == first).all())


def _some(mask: Array, dim: int) -> Array:
    """Return a part of a mask, spread over it and whole along a dimension, in which most structures are refuted."""
    slices, budget = [slice(None)] * mask.ndim, max(_SAMPLE // mask.shape[dim], 1)
    for each, size in enumerate(mask.shape):
        if each != dim:
            slices[each] = slice(None, None, -(-size // budget))
            budget = max(budget // size, 1)
    return mask[tuple(slices)]


def _split(mask: Array, dim: int, part: int) -> Array:
    """Return a mask as rows of ``part`` consecutive entries along a dimension."""
    import numpy as np

    return np.ascontiguousarray(np.moveaxis(mask, dim, -1)).reshape(-1, part)


def groups_of(mask: Array) -> tuple[int, int] | None:
    """Return the dimension and size of groups with few distinct contents, the index of which is small; or None.

    Example:
        >>> import numpy as np
        >>> groups_of(np.array([[1, 1, 0, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0, 1, 0]] * 50, dtype=bool))
        (1, 8)
    """
    best: tuple[float, int, int] | None = None
    for dim in reversed(range(mask.ndim)):
        for of in _GROUPS:
            if mask.shape[dim] % of:
                continue
            count = len(_contents(_split(_some(mask, dim), dim, of), of)[0])
            if count <= _TABLE and _width(count) < of and (best is None or _width(count) / of < best[0]):
                best = (_width(count) / of, dim, of)
    return best[1:] if best else None


def _width(count: int) -> int:
    return max(count - 1, 0).bit_length()


def _contents(rows: Array, of: int) -> tuple[Array, Array]:
    """Return the distinct contents of rows of bools, as numbers, and the content of each row."""
    import numpy as np

    if of == 4:
        rows = np.pad(rows, ((0, 0), (0, 4)))
    numbers = np.packbits(rows, axis=1, bitorder="little")
    numbers = numbers.view("<u2").reshape(-1) if of == 16 else numbers.reshape(-1)
    return np.flatnonzero(np.bincount(numbers, minlength=1)), numbers


def _grouped(mask: Array, dim: int, of: int) -> tuple[dict[str, Any], Array]:
    import numpy as np

    table, numbers = _contents(_split(mask, dim, of), of)
    lookup = np.zeros(1 << of, np.uint16)
    lookup[table] = np.arange(len(table), dtype=np.uint16)
    params = {"code": "groups", "dim": dim, "of": of, "table": table.tolist()}
    return params, _planes(lookup[numbers], _width(len(table)))


def _ungrouped(params: Mapping[str, Any], data: Array, shape: Sequence[int]) -> Array:
    import numpy as np

    dim, of, table = params["dim"], params["of"], np.asarray(params["table"], dtype="<u2")
    count = int(np.prod(shape, dtype=np.int64)) // of
    index = _from_planes(data, _width(len(table)), count)
    if count and int(index.max()) >= len(table):
        raise ValueError("an index of a mask's groups is out of range")
    rows = np.unpackbits(table[index].view(np.uint8).reshape(count, 2), axis=1, bitorder="little")[:, :of]
    moved = [size for each, size in enumerate(shape) if each != dim] + [shape[dim]]
    return np.ascontiguousarray(np.moveaxis(rows.view(bool).reshape(moved), -1, dim))


def _planes(numbers: Array, width: int) -> Array:
    """Return numbers as ``width`` bit planes, each packed."""
    import numpy as np

    numbers = (numbers & ((1 << width) - 1)).astype(np.uint8 if width <= 8 else np.int64)
    planes = [np.packbits(numbers & numbers.dtype.type(1 << bit)) for bit in range(width)]
    return np.concatenate(planes) if planes else np.empty(0, np.uint8)


def _from_planes(data: Array, width: int, count: int) -> Array:
    import numpy as np

    size = -(-count // 8)
    if data.size != width * size:
        raise ValueError(f"{count} numbers of {width} bits should have {width * size} bytes, but have {data.size}")
    numbers = np.zeros(count, np.int32)
    for bit in range(width):
        plane = np.unpackbits(data[bit * size : (bit + 1) * size], count=count)
        numbers |= np.left_shift(plane, bit, dtype=np.int32)
    return numbers


def _rice(flat: Array, kept: int) -> tuple[dict[str, Any], Array]:
    import numpy as np

    inverted = kept * 2 > flat.size
    marks = np.flatnonzero(~flat if inverted else flat)
    gaps = marks.copy()
    gaps[1:] -= marks[:-1] + 1
    guess = max(int(np.log2(max(flat.size / len(marks) * 0.6931, 1))), 0)
    low = min({max(guess - 1, 0), guess, guess + 1}, key=lambda bits: bits * len(gaps) + int((gaps >> bits).sum()))
    ends = np.cumsum((gaps >> low) + 1)
    unary = np.zeros(int(ends[-1]), bool)
    unary[ends - 1] = True
    params = {"code": "rice", "inverted": inverted, "marks": len(marks), "low": low}
    return params, np.concatenate([_planes(gaps, low), np.packbits(unary)])


def rice_positions(params: Mapping[str, Any], data: Array, size: int) -> Array:
    """Return the sorted flat indices that a Rice code holds: of the kept entries, or of the pruned if inverted.

    Raises:
        ValueError: ``data`` is not a code of that many indices below ``size``.
    """
    import numpy as np

    marks, low = params["marks"], params["low"]
    planes = low * -(-marks // 8)
    ones = np.flatnonzero(np.unpackbits(data[planes:]).view(bool))
    if len(ones) != marks:
        raise ValueError(f"a mask should have {marks} marks, but has {len(ones)}")
    counts = np.arange(marks)
    positions: Array = ((ones - counts) << low) + counts
    if low:
        positions += np.cumsum(_from_planes(data[:planes], low, marks))
    if marks and int(positions[-1]) >= size:
        raise ValueError(f"a mask of {size} entries marks entry {int(positions[-1])}")
    return positions


def _bits(flat: Array) -> tuple[dict[str, Any], Array]:
    import numpy as np

    raw = np.packbits(flat)
    middle = raw[len(raw) // 2 :][: _SAMPLE // 4].tobytes()  # Deflate is slow where it gains nothing
    if len(zlib.compress(middle, 1)) < 0.4 * len(middle):
        deflated = zlib.compress(raw.tobytes(), 1)
        if len(deflated) < raw.nbytes:
            return {"code": "deflated bits"}, np.frombuffer(deflated, np.uint8)
    return {"code": "bits"}, raw
