"""Parts of the handlers' representations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from ignite_prune._utils.plain_repr import plain_repr

if TYPE_CHECKING:
    from ignite_prune.update.param_group import ParamGroup


def counted(count: int, what: str) -> str:
    """Return ``"1 layer"`` or ``"3 layers"``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def describe_group(group: ParamGroup, parameters: Mapping[str, nn.Parameter]) -> str:
    """Return how many parameters a PruneHandler's group has, how they are pruned, and how sparse they are to be."""
    entries = sum(parameters[name].numel() for name in group["params"])
    parts = [f"{counted(len(group['params']), 'parameter')} ({entries} entries)"]
    parts += map(plain_repr, (group["saliency"], group["pattern"], group["allocation"], *group["repair"]))
    parts.append(f"target {group['sparsity']:.4g}")
    if group["target"] is not None:
        parts[-1] += f" of {type(group['target']).__name__}"
    if group["schedule"] is not None:
        parts.append(f"schedule {plain_repr(group['schedule'])}")
    return ", ".join(parts)
