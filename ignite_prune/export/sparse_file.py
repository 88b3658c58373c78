"""Compressed files of sparse models: safetensors, with the kept values and a compressed mask for each sparse tensor.

A tensor that is smaller so is stored as two tensors of bytes, ``<name>::mask`` and ``<name>::values``; every other one
under its own name, as in any safetensors file. The metadata holds the version, a record of each sparse tensor, names of
tied tensors, the indices that slicing left, and a SHA-256 digest of all of that and of the data. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune.core.selection import unwrap
from ignite_prune.export.container import read_container, write_container
from ignite_prune.export.packed_tensor import is_storable, pack_tensor, unpack_tensor
from ignite_prune.structure.kept_indices import attributes_of
from ignite_prune.structure.slicing.checkpoint import load_shrunk, to_plain
from ignite_prune.structure.slicing.model_edit import Indices
from ignite_prune.structure.slicing.module_attributes import dropout_rates
from ignite_prune.structure.slicing.stored_sizes import check_sizes, stored_sizes

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Contents:
    """What a file of :func:`save` holds.

    Attributes:
        tensors: the state_dict, by name.
        masks: bool masks (True = kept) of the tensors that are stored sparse.
        left: indices that slicing left, by name and dimension; empty for a model that was not sliced.
        rates: rates of the Dropout modules of a sliced model.
        attributes: sizes that modules of a sliced model store, by path and name, and that loading sets.
        sizes: those that its sliced modules have, by path and name, and that loading compares.
    """

    tensors: dict[str, Tensor]
    masks: dict[str, Tensor]
    left: dict[str, dict[str, Tensor]]
    rates: dict[str, float]
    attributes: dict[str, dict[str, int]]
    sizes: dict[str, dict[str, int]]


def save(
    model: nn.Module,
    path: str | PathLike[str],
    masks: Mapping[str, Tensor] | None = None,
    *,
    indices: Indices | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a model's state_dict to a compressed sparse file; the model is not changed (requires safetensors and NumPy).

    At a sparsity of 90 % a float32 weight takes 0.115 of its dense size, 2:4 sparsity 0.523, a dense model 1. Every
    value is restored to the bit. The file is written under a temporary name and renamed, so an interrupted write leaves
    no partial file.

    Args:
        model: bare, wrapped or compiled, on any device; in training or not.
        path: of the new file.
        masks: bool masks by parameter name, True = kept, such as ``pruner.masks``: they are stored even where a kept
            value is 0; a −0.0 that one prunes becomes 0.0. None stores as pruned what is 0.0; a −0.0, as
            ``weight * mask`` leaves, is a value then.
        indices: of a model that was sliced: ``report.indices`` or ``ShrinkHandler.left``; then :func:`load` takes the
            model at its full size.
        overwrite: replace a file that exists.

    Returns:
        The path of the file.

    Raises:
        ImportError: safetensors is not installed.
        FileExistsError: ``path`` exists.
        TypeError: an argument is of another type, or the state_dict holds something that is not a tensor.
        ValueError: a mask or the indices do not fit the model; a mask prunes a weight that is not 0; a tensor is on the
            meta device or quantized. No file is written then.

    Example:
        >>> import tempfile
        >>> from ignite_prune import export, prune_model
        >>> model = nn.Linear(64, 64)
        >>> masks = prune_model(model, sparsity=0.9)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export.save(model, f"{folder}/small.safetensors", masks)
        ...     same = export.load(nn.Linear(64, 64), path)
        >>> bool(torch.equal(same.weight, model.weight))
        True
    """
    model, path = unwrap(model), _as_path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Argument path: there is no folder {str(path.parent)!r}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"Argument path: {str(path)!r} exists; use another name, or overwrite=True")
    state = _checked_state(model)
    if indices is not None:
        check_indices(state, indices)
    tensors, index = _packed(state, _checked_masks(state, masks))
    if indices is not None:
        index |= {"rates": dropout_rates(model), "sizes": stored_sizes(model, indices)}
        attributes = attributes_of(indices)
        if attributes:
            index["attributes"] = attributes
        for name, dims in to_plain(indices).items():
            tensors.update({f"{name}::left::{dim}": stay.cpu().contiguous() for dim, stay in dims.items()})
    write_container(tensors, index, path)
    return path


def load(model: Module | Callable[[], Module], path: str | PathLike[str]) -> Module:
    """Load a file of :func:`save` into a model, and return the model (requires safetensors and NumPy).

    Args:
        model: a model of the same architecture, or a class or function that returns one when called without arguments.
            If the file is of a sliced model that was saved with its ``indices``, the model at its full size, built from
            the configuration of the unpruned one.
        path: of a file that :func:`save` wrote.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: there is no such file.
        TypeError: ``model`` is not a model and returns none.
        ValueError: the file is not one of :func:`save`, of an unknown version, cut short or damaged; or its tensors
            have other names, shapes or dtypes than the model's, or its sliced modules other sizes. The model is not
            changed then.
    """
    if isinstance(model, (str, PathLike)):
        raise TypeError("Argument model should be a model, a class or a function, but given a path: load(model, path)")
    contents = read(path)
    built = model if isinstance(model, nn.Module) else model() if callable(model) else model
    if not isinstance(built, nn.Module):
        raise TypeError(f"Argument model should be a torch.nn.Module, or return one, but given {type(built)}")
    target = unwrap(built)
    fits = _misfit(target.state_dict(), contents.tensors)
    if contents.left and fits is not None:
        parts = {name: getattr(contents, name) for name in ("left", "rates", "attributes", "sizes")}
        load_shrunk(target, {**parts, "model": contents.tensors})
    elif fits is not None:
        raise ValueError(f"{str(path)!r} is of another model: {fits}")
    else:
        check_sizes(target, contents.left, contents.sizes)
        target.load_state_dict(contents.tensors)
    return built  # type: ignore[return-value]


def read(path: str | PathLike[str]) -> Contents:
    """Return the tensors and masks of a file of :func:`save`, on the CPU, without a model.

    Raises:
        ImportError, FileNotFoundError, ValueError: as :func:`load`.
    """
    path = _as_path(path)
    raw, index = read_container(path)
    tensors: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    left: dict[str, dict[str, Tensor]] = {}
    try:
        for name, record in index.get("sparse", {}).items():
            tensors[name], masks[name] = unpack_tensor(record, raw.pop(f"{name}::mask"), raw.pop(f"{name}::values"))
    except KeyError as error:
        raise ValueError(f"{str(path)!r} is damaged: it lacks {error}") from error
    for name, tensor in raw.items():
        base, mark, dim = name.rpartition("::left::")
        if mark:
            left.setdefault(base, {})[dim] = tensor
        else:
            tensors[name] = tensor
    for name, first in index.get("tied", {}).items():
        tensors[name] = tensors[first]
    return Contents(tensors, masks, left, index.get("rates", {}), index.get("attributes", {}), index.get("sizes", {}))


def packed_bytes(state: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> tuple[int, int]:
    """Return how many bytes the tensors of a file of :func:`save` take, and how many of these are masks'."""
    tensors, _ = _packed(state, {name: mask for name, mask in (masks or {}).items() if name in state})
    return sum(each.nbytes for each in tensors.values()), sum(
        each.nbytes for name, each in tensors.items() if name.endswith("::mask")
    )


def _as_path(path: Any) -> Path:
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"Argument path should be a path, but given {path!r:.80}")
    return Path(path)


def _checked_state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name!r} of the state_dict is no tensor but {type(tensor)}, which the file cannot hold")
        if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided or "::" in name:
            raise ValueError(
                f"{name!r} should be a dense tensor on a device, without '::' in its name, but it is {tensor.dtype}, "
                f"{tensor.layout} on {tensor.device}"
            )
    return dict(state)


def _checked_masks(state: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return masks under the model's names; every entry that one prunes is 0."""
    if masks is None:
        return {}
    if not isinstance(masks, Mapping):
        raise TypeError(f"Argument masks should be a mapping {{name: bool tensor}}, but given {type(masks)}")
    for name, mask in masks.items():
        if name not in state:
            raise ValueError(f"Argument masks: the model has no parameter {name!r}; {near(name, list(state))}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(
                f"The mask of {name!r} should be a tensor of torch.bool (True = kept), but given {mask!r:.80}"
            )
        if mask.shape != state[name].shape:
            raise ValueError(
                f"The mask of {name!r} should have the parameter's shape {tuple(state[name].shape)}, but given "
                f"{tuple(mask.shape)}"
            )
        alive = int((state[name].detach().ne(0) & ~mask.to(state[name].device)).sum())
        if alive:
            raise ValueError(
                f"The mask of {name!r} prunes {alive} weights that are not 0: the masks are of another model, or the "
                "model was trained without them; call masks.apply_(model) first"
            )
    return dict(masks)


def check_indices(state: Mapping[str, Tensor], indices: Any) -> None:
    """Raise unless indices are what slicing left of the model with this state_dict."""
    if not isinstance(indices, Mapping) or not all(isinstance(dims, Mapping) for dims in indices.values()):
        raise TypeError(f"Argument indices should be report.indices of shrink, but given {indices!r:.80}")
    for name, dims in indices.items():
        if name not in state:
            raise ValueError(f"Argument indices: the model has no {name!r}; {near(str(name), list(state))}")
        shape = tuple(state[name].shape)
        for dim, stay in dims.items():
            if not isinstance(stay, Tensor) or not 0 <= int(dim) < len(shape) or shape[int(dim)] != len(stay):
                raise ValueError(
                    f"Argument indices: {name!r} has shape {shape}, and the indices of dimension {dim} are those of "
                    "another model, or of an earlier slicing: give ShrinkHandler.left after several"
                )


def _packed(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of the file and its index."""
    tensors: dict[str, Tensor] = {}
    sparse: dict[str, Any] = {}
    tied: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        first = seen.setdefault(place, name) if tensor.numel() else name
        if first != name:
            tied[name] = first
            continue
        packed = pack_tensor(tensor, masks.get(name))
        if packed is None and not is_storable(tensor.dtype):
            packed = pack_tensor(tensor, torch.ones(tensor.shape, dtype=torch.bool))
        if packed is None:
            tensors[name] = tensor.detach()
        else:
            sparse[name], tensors[f"{name}::mask"], tensors[f"{name}::values"] = packed
    return tensors, {key: value for key, value in (("sparse", sparse), ("tied", tied)) if value}


def _misfit(state: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return how the tensors of a file differ from those of a model; None if they fit."""
    for name in [*state, *found]:
        if name not in found:
            return f"it has no {name!r}; {near(name, list(found))}"
        if name not in state:
            return f"the model has no {name!r}; {near(name, list(state))}"
        mine, other = state[name], found[name]
        if mine.is_meta:
            return f"{name!r} of the model is on the meta device; call model.to_empty(device='cpu') first"
        if mine.shape != other.shape:
            return f"{name!r} has shape {tuple(other.shape)}, in the model {tuple(mine.shape)}"
        if mine.dtype != other.dtype:
            return f"{name!r} is {other.dtype}, in the model {mine.dtype}; call model.to({other.dtype}) first"
    return None
