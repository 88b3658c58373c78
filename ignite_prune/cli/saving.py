"""Files that commands write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_model(model: nn.Module, path: Path, masks: Mapping[str, Any] | None = None) -> None:
    """Write a model's state_dict: ``.safetensors`` compressed and sparse, ``.pt`` or ``.pth`` plain.

    Raises:
        ValueError: another suffix.
        FileExistsError: the file exists.
    """
    if path.suffix == ".safetensors":
        from ignite_prune import export

        export.save(model, path, masks)
    elif path.suffix in (".pt", ".pth"):
        if path.exists():
            raise FileExistsError(f"{path} exists; use another name")
        torch.save(model.state_dict(), path)
    else:
        raise ValueError(f"--output should end in .safetensors, .pt or .pth, but given {str(path)!r}")
