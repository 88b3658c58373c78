"""Tensors and masks of a file: a state_dict, a checkpoint, a safetensors file, a compressed sparse file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.bits import packed_size, unpack
from ignite_prune.recipe.dialects.masked_state import plain_state
from ignite_prune.recipe.recipe_error import RecipeError


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        tensors: the state_dict, plain.
        masks: True = kept, by name; empty where the file has none.
        of: where the masks are from.
    """

    tensors: dict[str, Tensor]
    masks: dict[str, Tensor]
    of: str

    def kept(self, name: str) -> Tensor | None:
        """Return a tensor's mask: the file's, or where weights of two or more dimensions are not 0."""
        if name in self.masks:
            return self.masks[name]
        tensor = self.tensors[name]
        return tensor != 0 if not self.masks and tensor.dim() > 1 and tensor.is_floating_point() else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what a file holds; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is no file of torch.save() with tensors and plain values alone"
        ) from None
    state = max(_state_dicts(loaded), key=len, default=None)
    if state is None:
        raise ValueError(f"{path} holds no state_dict of tensors")
    try:
        plain, masks, _ = plain_state(state)
        return Checkpoint(plain, masks, "NAME_mask")
    except RecipeError:
        found = next(_packed_masks(loaded), None)
        return Checkpoint(dict(state), found or {}, "the pruner's masks" if found else "zeros")


def _of_safetensors(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    from ignite_prune import export

    try:
        contents = export.read(path)
        return Checkpoint(contents.tensors, contents.masks, "the file's masks")
    except ValueError:
        try:
            return Checkpoint(load_file(path), {}, "zeros")
        except Exception as error:
            raise ValueError(f"{path} cannot be read: {error}") from None


def _state_dicts(value: Any, depth: int = 4) -> Iterator[Mapping[str, Tensor]]:
    """Yield the mappings of tensors within a checkpoint."""
    if not isinstance(value, Mapping) or depth == 0:
        return
    if value and all(isinstance(key, str) for key in value):
        tensors = {key: each for key, each in value.items() if isinstance(each, Tensor)}
        if tensors and len(tensors) == len(value):
            yield tensors
    for each in value.values():
        yield from _state_dicts(each, depth - 1)


def _packed_masks(value: Any, depth: int = 4) -> Iterator[dict[str, Tensor]]:
    """Yield the masks that a handler of this package has saved in a checkpoint."""
    if not isinstance(value, Mapping) or depth == 0:
        return
    if {"names", "shapes", "bits"} <= set(value) and isinstance(value["bits"], Tensor):
        masks, start = {}, 0
        for name, shape in zip(value["names"], value["shapes"]):
            entries = math.prod(shape)
            size = packed_size(entries)
            masks[str(name)] = unpack(value["bits"][start : start + size], entries).view(shape)
            start += size
        yield masks
    for each in value.values():
        yield from _packed_masks(each, depth - 1)
