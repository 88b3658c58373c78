"""The settings of a handler as texts that are the same in every process, so that ranks can compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ignite_prune._utils.plain_repr import plain_repr
from ignite_prune.saliency import FromCallable, Saliency
from ignite_prune.structure.structure import Structure
from ignite_prune.update.param_group import ParamGroup

_COMPARED = (
    *("params", "saliency", "pattern", "allocation", "schedule", "structure", "repair", "target", "keep_dense"),
    "unreached",
)


def settings_of(groups: Sequence[ParamGroup], given: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of parameter groups by name.

    Args:
        groups: of this rank.
        given: the user's keywords; a generator that was not given is seeded by each rank for itself.
    """
    found = {}
    for index, group in enumerate(groups):
        where = f" of group {index}" if len(groups) > 1 else ""
        settings: Mapping[str, Any] = {**group, "generator": group["generator"] if given.get("generator") else None}
        for key in (*_COMPARED, "sparsity", "generator"):
            found[f"{key}={where}"] = text_of(settings[key])
    return found


def text_of(value: Any) -> str:
    """Return a value's representation, the same in every process that was given the same."""
    if isinstance(value, torch.Generator):
        state = int(value.get_state().long().mul(torch.arange(1, value.get_state().numel() + 1)).sum())
        return f"a generator of seed {value.initial_seed()} (state {state:x})"
    if isinstance(value, FromCallable):
        return f"FromCallable({getattr(value.function, '__qualname__', type(value.function).__qualname__)})"
    if isinstance(value, Saliency) and value.data_dependent and not type(value).__module__.startswith("ignite_prune."):
        return type(value).__qualname__  # the user's own may hold what its rank alone has
    if isinstance(value, Structure):
        return f"a structure of {[(group.name, group.size) for group in value]}"
    return plain_repr(value)
