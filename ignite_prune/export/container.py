"""The container of compressed files: safetensors with a versioned index, a digest, and a write that is whole or not."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.extras import needed

FORMAT, VERSION = "ignite_prune.sparse", 1


def write_container(tensors: Mapping[str, Tensor], index: Mapping[str, Any], path: Path) -> None:
    """Write tensors and an index of JSON types to a temporary file, which is then renamed to ``path``."""
    needed("safetensors")
    from safetensors.torch import save_file

    owned = {name: _own(tensor) for name, tensor in tensors.items()}
    text = json.dumps(index, separators=(",", ":"))
    metadata = {"format": FORMAT, "version": str(VERSION), "index": text, "sha256": _digest(owned, text)}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(owned, temporary, metadata)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_container(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the index of a file.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of :func:`write_container`, of an unknown version, cut short or damaged.
    """
    text, digest = _metadata(path)
    from safetensors.torch import load_file

    tensors = load_file(path)
    if _digest(tensors, text) != digest:
        raise ValueError(f"{str(path)!r} is damaged: its contents do not fit the digest that was saved with them")
    index = json.loads(text)
    return tensors, index


def _metadata(path: Path) -> tuple[str, str]:
    needed("safetensors")
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"Argument path: there is no file {str(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a safetensors file, or is cut short: {error}") from error
    if metadata.get("format") != FORMAT or not {"version", "index", "sha256"} <= set(metadata):
        raise ValueError(f"{str(path)!r} was not written by ignite_prune.export.save")
    if metadata["version"] != str(VERSION):
        raise ValueError(
            f"{str(path)!r} has version {metadata['version']}, but this release of ignite_prune reads version "
            f"{VERSION}; install a newer one"
        )
    return metadata["index"], metadata["sha256"]


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _own(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor on the CPU that fills its storage, as safetensors needs it."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
