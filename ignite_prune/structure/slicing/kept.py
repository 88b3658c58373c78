"""Which indices of a model's tensors are left, over several slicings, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune.structure.slicing.model_edit import Indices
from ignite_prune.structure.slicing.module_attributes import dropout_rates


def then(first: Indices, second: Indices) -> dict[str, dict[int, Tensor]]:
    """Return which indices are left after one slicing and another of what it left.

    Example:
        >>> then({"w": {0: torch.tensor([0, 2, 3])}}, {"w": {0: torch.tensor([1, 2])}})
        {'w': {0: tensor([2, 3])}}
    """
    left = {name: dict(dims) for name, dims in first.items()}
    for name, dims in second.items():
        mine = left.setdefault(name, {})
        for dim, stay in dims.items():
            mine[dim] = mine[dim][stay] if dim in mine else stay
    return left


def to_plain(indices: Indices) -> dict[str, dict[str, Tensor]]:
    """Return indices as a checkpoint holds them."""
    return {name: {str(dim): stay.to(torch.int64) for dim, stay in dims.items()} for name, dims in indices.items()}


def from_plain(state: Any, model: nn.Module) -> dict[str, dict[int, Tensor]]:
    """Return a checkpoint's indices, which fit the full-size model.

    Raises:
        TypeError: not of that form.
        ValueError: of another model, or out of range.
    """
    if not isinstance(state, Mapping) or not all(isinstance(dims, Mapping) for dims in state.values()):
        raise TypeError("The kept indices of a checkpoint should be a mapping by name and dimension")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: dict[str, dict[int, Tensor]] = {}
    for name, dims in state.items():
        if name not in tensors:
            raise ValueError(f"The checkpoint was made from another model: this one has no {name!r}")
        for dim, stay in dims.items():
            found.setdefault(name, {})[int(dim)] = _checked(name, int(dim), stay, tensors[name])
    return found


def rates_from_plain(state: Any, model: nn.Module) -> dict[str, float]:
    """Return a checkpoint's rates of Dropout modules, by path.

    Raises:
        TypeError: not of that form.
        ValueError: of another model, or out of [0, 1].
    """
    known = dropout_rates(model)
    if not isinstance(state, Mapping) or not all(isinstance(rate, float) for rate in state.values()):
        raise TypeError("The Dropout rates of a checkpoint should be numbers by path")
    for path, rate in state.items():
        if path not in known:
            raise ValueError(f"The checkpoint was made from another model: this one has no Dropout {path!r}")
        if not 0 <= rate <= 1:
            raise ValueError(f"The checkpoint's rate of {path!r} should be in [0, 1], but it is {rate}")
    return dict(state)


def _checked(name: str, dim: int, stay: Any, tensor: Tensor) -> Tensor:
    if not isinstance(stay, Tensor) or stay.dtype != torch.int64 or stay.dim() != 1 or dim >= tensor.dim():
        raise TypeError(f"The kept indices of {name!r} should be 1-D int64 tensors by dimension")
    if stay.numel() and not 0 <= int(stay.min()) <= int(stay.max()) < tensor.shape[dim]:
        raise ValueError(
            f"The checkpoint keeps index {int(stay.max())} of dimension {dim} of {name!r}, which has "
            f"{tensor.shape[dim]}; give the model at its full size"
        )
    return stay
