"""Reads masks, weights, settings and curves from a checkpoint file.

Files are checkpoints of Ignite's, state_dicts, those of ``torch.nn.utils.prune`` (``NAME_orig``, ``NAME_mask``) and
files of ``export.save``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ignite_prune.core.mask_state import unpacked
from ignite_prune.handlers.prune_handler import PruneHandler
from ignite_prune.recipe.dialects.masked_state import plain_state
from ignite_prune.report.curves import curves_of_history, is_history
from ignite_prune.report.findings import ReportSource

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def read_file(path: Path) -> ReportSource:
    """Return what a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, is damaged, or holds neither masks nor weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Argument source: there is no file {str(path)!r}")
    source = ReportSource(title=path.stem, where=str(path), file=path)
    if path.suffix == ".safetensors":
        return _safetensors(path, source)
    try:
        with _arrays_allowed():
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, LookupError, AttributeError) as error:
        foreign = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)", str(error))
        why = (
            f"it holds objects of {foreign[1]}; save the states of model and pruner in a file of their own"
            if foreign
            else f"{(str(error).strip() or type(error).__name__).splitlines()[0]:.200}"
        )
        raise ValueError(
            f"{str(path)!r} is not a checkpoint that torch.load(weights_only=True) reads, or is damaged: {why}"
        ) from error
    return _read(held, source)


def _arrays_allowed() -> AbstractContextManager[Any]:
    """Let NumPy's arrays be read: the random states of a ``DeterministicEngine`` are in its checkpoint."""
    allow = vars(torch.serialization).get("safe_globals")  # from torch 2.5 on
    if allow is None or find_spec("numpy") is None:
        return nullcontext()
    import numpy

    array = numpy.zeros(1, numpy.uint32)
    found: AbstractContextManager[Any] = allow([array.__reduce__()[0], type(array), numpy.dtype, type(array.dtype)])
    return found


def _read(held: Any, source: ReportSource) -> ReportSource:
    mappings = list(_mappings(held))
    for _, each in mappings:
        found = _masks(each)
        if found is not None:
            source.masks, source.asked, source.sparsity_of = found, _asked(each), "the pruner's masks"
            break
    source.state = _weights(mappings, source.masks)
    if source.masks is None and any(name.endswith("_orig") for name in source.state):
        source.state, source.masks, _ = plain_state(source.state)
        source.sparsity_of = "NAME_mask"
    if source.masks is None and not any(each.dim() > 1 for each in source.state.values()):
        raise ValueError(f"{source.where!r} holds neither the masks of a pruner nor weights")
    for key, each in mappings:
        source.asked += _settings(key, each)
        for name, value in each.items():
            if is_history(value):
                source.curves |= curves_of_history(value, str(name))
    return source


def _safetensors(path: Path, source: ReportSource) -> ReportSource:
    from ignite_prune._utils.extras import needed
    from ignite_prune.export.sparse_file import read

    needed("safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        contents = read(path)
        source.state, source.masks, source.sparsity_of = contents.tensors, contents.masks, "the file's masks"
    except ValueError as error:
        if "was not written by" not in str(error):
            raise
        try:
            source.state = load_file(path)
        except SafetensorError as broken:
            raise ValueError(f"{str(path)!r} is damaged: {broken}") from broken
    return source


def _mappings(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield a mapping and every mapping inside it, each with its key."""
    if isinstance(value, Mapping) and depth < 6:
        yield key, value
        for name, each in value.items():
            yield from _mappings(each, str(name), depth + 1)


def _masks(state: Mapping[Any, Any]) -> dict[str, Tensor] | None:
    """Return the masks of a pruner's state; None if it is none."""
    held = state.get("masks")
    if not isinstance(held, Mapping) or not {"names", "shapes"} <= set(held):
        return None
    version = state.get("version")
    if "sparsities" in state and isinstance(version, int) and version > PruneHandler.VERSION:
        raise ValueError(
            f"The checkpoint's pruner has version {version}, this release of ignite_prune reads versions up to "
            f"{PruneHandler.VERSION}; update ignite_prune"
        )
    try:
        like = {name: torch.empty(1).expand(shape) for name, shape in zip(held["names"], held["shapes"])}
        return dict(unpacked(held, like))
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"The masks of the checkpoint's pruner are damaged: {error}") from error


def _asked(state: Mapping[Any, Any]) -> list[tuple[str, str]]:
    asked = [("state version", str(state.get("version", "unknown")))]
    if isinstance(state.get("kind"), str):
        asked.insert(0, ("handler", state["kind"]))
    targets = state.get("sparsities")
    if isinstance(targets, list):
        asked += [(f"target of group {i}", f"{each:.4g}") for i, each in enumerate(targets) if isinstance(each, float)]
    return asked


def _settings(key: str, held: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """Return the plain values of a mapping of settings, and the counts of a trainer."""
    plain = {
        name: value
        for name, value in held.items()
        if isinstance(name, str) and isinstance(value, (str, int, float, bool))
    }
    if key in ("settings", "config", "hparams", "hyperparameters", "args"):
        return [(name, str(value)) for name, value in plain.items()]
    return [(name, str(value)) for name, value in plain.items() if name in ("iteration", "epoch", "max_epochs", "seed")]


def _weights(mappings: list[tuple[str, Mapping[Any, Any]]], masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the state_dict among some mappings: one with the masks' names, else the one with the most entries."""
    best: dict[str, Tensor] = {}
    for _, each in mappings:
        tensors = {
            str(name).removeprefix("module.").removeprefix("_orig_mod."): value
            for name, value in each.items()
            if isinstance(value, Tensor)
        }
        if masks is not None:
            if all(name in tensors and tensors[name].shape == mask.shape for name, mask in masks.items()):
                return tensors
        elif sum(value.numel() for value in tensors.values()) > sum(value.numel() for value in best.values()):
            best = tensors
    return best
