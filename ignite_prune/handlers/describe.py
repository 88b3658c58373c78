"""Parts of the handlers' representations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


def counted(count: int, what: str) -> str:
    """Return ``"1 layer"`` or ``"3 layers"``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def plain(value: Any) -> str:
    """Return a value's representation without addresses, so that it is the same in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def describe_group(group: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> str:
    """Return how many parameters a PruneHandler's group has, how they are pruned, and how sparse they are to be."""
    entries = sum(parameters[name].numel() for name in group["params"])
    parts = [f"{counted(len(group['params']), 'parameter')} ({entries} entries)"]
    parts += [plain(group[key]) for key in ("saliency", "pattern", "allocation")]
    repairs: Sequence[Any] = group["repair"]
    parts += [plain(repair) for repair in repairs]
    parts.append(f"target {group['sparsity']:.4g}")
    if group["target"] is not None:
        parts[-1] += f" of {type(group['target']).__name__}"
    if group["schedule"] is not None:
        parts.append(f"schedule {plain(group['schedule'])}")
    return ", ".join(parts)
