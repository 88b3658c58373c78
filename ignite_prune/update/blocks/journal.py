"""Journal: the finished steps of pruning a checkpoint, in a file that stays valid after a kill."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.nested import tensors_in

VERSION = 1
_FORMS = "outputs.{}.pt"


class Journal:
    """The state of the work in a folder.

    Args:
        folder: of the work.
        settings: what the work depends on; a journal with others is refused.

    Attributes:
        state: JSON types: ``"copied"`` (files), ``"route"``, ``"targets"``, ``"done"`` (blocks), ``"generator"``.

    Raises:
        ValueError: the folder holds work with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._path, self.folder = folder / "journal.json", folder
        self.state: dict[str, Any] = {"version": VERSION, "settings": dict(settings), "copied": [], "done": []}
        if self._path.is_file():
            self.state = self._read(dict(settings))

    def _read(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        advice = f"delete the folder {str(self.folder)!r} to start again"
        try:
            state: dict[str, Any] = json.loads(self._path.read_text())
            earlier = state["settings"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"The journal of an interrupted run is damaged: {advice}") from None
        if state["version"] != VERSION:
            raise ValueError(f"The interrupted run is of version {state['version']}, not {VERSION}: {advice}")
        for name, value in settings.items():
            if earlier.get(name) != value:
                raise ValueError(
                    f"An interrupted run with another {name} is unfinished ({earlier.get(name)!r:.80}, and now "
                    f"{value!r:.80}); call with the same arguments to go on, or {advice}"
                )
        return state

    def write(self, **changed: Any) -> None:
        """Change the state, and wait until it is on the disk."""
        self.state |= changed
        temporary = self._path.with_suffix(".part")
        with temporary.open("w") as file:
            json.dump(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)

    def put_forms(self, place: int, forms: Mapping[str, Any]) -> None:
        """Store what the outputs of a node look like."""
        torch.save(dict(forms), self.folder / _FORMS.format(place))

    def forms(self, place: int) -> dict[str, Any]:
        """Return what :meth:`put_forms` stored."""
        found: dict[str, Any] = torch.load(self.folder / _FORMS.format(place), weights_only=True)
        return found


def setting_text(value: Any) -> str:
    """Return a setting as text that is the same in another process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def digest(value: Any, found: Any = None) -> str:
    """Return a digest of the tensors in a value; with ``found``, a running ``hashlib`` object, of those before too."""
    found = hashlib.sha256() if found is None else found
    for tensor in tensors_in(value):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(_content(tensor))
    return str(found.hexdigest())


def _content(tensor: Tensor) -> bytes:
    held = tensor.detach().cpu().contiguous()
    return ctypes.string_at(held.data_ptr(), held.nbytes) if held.nbytes else b""
