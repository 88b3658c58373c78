"""State_dicts of ``torch.nn.utils.prune`` and of Lightning's ``ModelPruning``: ``NAME_orig`` and ``NAME_mask``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.extras import needed
from ignite_prune.recipe.dialects.report import Report
from ignite_prune.recipe.recipe_error import RecipeError

_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def is_masked_state(given: Any, dialect: str | None) -> bool:
    """Return whether something is a state_dict, or a file of one."""
    if dialect is not None and dialect != "torch":
        return False
    if isinstance(given, Mapping):
        state = _state_of(given)
        return dialect == "torch" or any(isinstance(each, Tensor) for each in state.values())
    return dialect == "torch" or str(given).lower().endswith(_SUFFIXES)


def plain_state(given: Any) -> tuple[dict[str, Any], dict[str, Tensor], Report]:
    """Return the plain state_dict, the masks (True = kept) and a report.

    Args:
        given: a state_dict, a checkpoint that holds one under ``state_dict`` or ``model``, or a file of either.

    Raises:
        RecipeError: not a state_dict, no masks, or a mask of another shape.
    """
    state = _state_of(_loaded(given))
    plain, masks, report = dict[str, Any](), dict[str, Tensor](), Report("torch.nn.utils.prune")
    for key, value in state.items():
        name = str(key)
        if name.endswith("_orig") and f"{name.removesuffix('_orig')}_mask" in state:
            short = name.removesuffix("_orig")
            mask = state[f"{short}_mask"]
            if not isinstance(value, Tensor) or not isinstance(mask, Tensor) or mask.shape != value.shape:
                raise RecipeError(f"the mask of {short!r} should be a tensor of the weight's shape")
            masks[short] = mask.bool()
            plain[short] = torch.where(masks[short], value, torch.zeros_like(value))
            gone = 1 - masks[short].float().mean().item()
            report.add("translated", f"{short}_orig, {short}_mask", None, f"{short}, of which {gone:.4g} is pruned")
        elif name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in state:
            continue
        else:
            plain[name] = value
    if not masks:
        raise RecipeError("the state_dict has no NAME_orig with NAME_mask; nothing in it is pruned")
    return plain, masks, report


def _loaded(given: Any) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    path = Path(given)
    if not path.is_file():
        raise RecipeError("there is no such file", source=str(given))
    try:
        if path.suffix == ".safetensors":
            needed("safetensors")
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        problem = "the checkpoint cannot be read: it is no file of tensors and plain values alone"
        raise RecipeError(problem, source=str(given)) from None
    if not isinstance(loaded, Mapping):
        raise RecipeError(f"a checkpoint should be a mapping, but this is a {type(loaded)}", source=str(given))
    return loaded


def _state_of(given: Mapping[Any, Any]) -> Mapping[Any, Any]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(given.get(key), Mapping):
            return given[key]  # type: ignore[no-any-return]
    return given
