"""Sizes of a model's file in several formats."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ignite_prune.export.sparse_file import packed_bytes
from ignite_prune.report.findings import Size


def sizes_of(state: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> list[Size]:
    """Return how many bytes a state_dict takes: dense, compressed, as CSR matrices, and with int8 weights."""
    tensors = {(each.data_ptr(), each.shape): each for each in state.values() if each.numel()}.values()
    dense = sum(each.nbytes for each in tensors)
    if not dense:
        return []
    csr = sum(_csr(each) for each in tensors)
    int8 = sum(each.numel() if _is_weight(each) else each.nbytes for each in tensors)
    kept = sum(int(each.count_nonzero()) if _is_weight(each) else each.nbytes for each in tensors)
    packed, bits = packed_bytes(state, masks)
    rows = [
        ("dense", dense, "the state_dict as it is"),
        ("compressed", packed, "export.save: kept values and compressed masks, lossless"),
        ("CSR", csr, "values and int32 column indices of sparse weights, computed"),
        ("int8", int8, "weights in 8 bits, computed"),
        ("int8, compressed", kept + bits, "8 bits per kept weight and compressed masks, computed"),
    ]
    return [Size(name, size, size / dense, note) for name, size, note in rows]


def _is_weight(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and tensor.is_floating_point()


def _csr(tensor: Tensor) -> int:
    if not _is_weight(tensor):
        return tensor.nbytes
    kept = int(tensor.count_nonzero())
    index = torch.int32.itemsize
    return min(tensor.nbytes, kept * (tensor.element_size() + index) + index * (tensor.shape[0] + 1))
