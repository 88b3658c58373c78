"""Weights in one or several safetensors files: read one tensor at a time, and written in place.

A file is 8 bytes (the header's length, little endian), a JSON header ``{name: {dtype, shape, data_offsets}}`` and the
tensors' bytes. A pruned tensor keeps its type and shape, so its bytes are written over those of a copy of the file.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.arguments import near

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LONGEST = 100_000_000  # bytes of a header, as in the reference implementation


@dataclass(frozen=True)
class Entry:
    """Where a tensor is.

    Args:
        file: name of the file.
        start: its first byte in the file.
        size: its number of bytes.
        type: its type, as safetensors calls it.
        shape: its shape.
    """

    file: str
    start: int
    size: int
    type: str
    shape: tuple[int, ...]


class SafetensorsFiles:
    """The tensors of a checkpoint by name.

    Args:
        folder: of the files.
        entries: of the tensors, by name.
        files: names of the files.
        single: whether the checkpoint was given as one file.
    """

    def __init__(self, folder: Path, entries: Mapping[str, Entry], files: Iterable[str], single: bool) -> None:
        self.folder, self.entries, self.files, self.single = folder, dict(entries), list(files), single

    @classmethod
    def find(cls, path: str | Path) -> SafetensorsFiles:
        """Return the checkpoint at a path: a file, an ``.index.json``, or a folder with either.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file is damaged, or lacks what the index says.
        """
        path = Path(path)
        if path.is_dir():
            indices = sorted(path.glob("*.safetensors.index.json"))
            files = sorted(path.glob("*.safetensors"))
            if len(indices) > 1:
                raise ValueError(f"{str(path)!r} holds several indices ({[each.name for each in indices]}); name one")
            if not indices and not files:
                raise FileNotFoundError(f"There is no *.safetensors in {str(path)!r}")
            return cls._by_index(indices[0]) if indices else cls._of(path, [each.name for each in files], False)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file or folder {str(path)!r}")
        return cls._by_index(path) if path.suffix == ".json" else cls._of(path.parent, [path.name], True)

    @classmethod
    def _by_index(cls, path: Path) -> SafetensorsFiles:
        try:
            places: dict[str, str] = json.loads(path.read_text())["weight_map"]
            names = sorted(set(places.values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{str(path)!r} is not an index of safetensors files (a JSON with 'weight_map')") from None
        for name in names:
            if Path(name).name != name:
                raise ValueError(f"{str(path)!r} names the file {name!r}, which is not in its folder")
            if not (path.parent / name).is_file():
                raise FileNotFoundError(f"{str(path)!r} names the file {name!r}, which is missing")
        found = cls._of(path.parent, names, False)
        for name, file in places.items():
            if name not in found.entries or found.entries[name].file != file:
                raise ValueError(f"{str(path)!r} says that {name!r} is in {file!r}, but it is not")
        return found

    @classmethod
    def _of(cls, folder: Path, names: list[str], single: bool) -> SafetensorsFiles:
        entries: dict[str, Entry] = {}
        for name in names:
            for tensor, entry in _header(folder / name).items():
                if tensor in entries:
                    raise ValueError(f"Tensor {tensor!r} is in {entries[tensor].file!r} and in {name!r}")
                entries[tensor] = entry
        return cls(folder, entries, names, single)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's type.

        Raises:
            ValueError: it is one that torch does not compute with here.
        """
        kind = self.entries[name].type
        if kind not in _TYPES:
            raise ValueError(f"Tensor {name!r} has the type {kind}, which is not supported; there are {list(_TYPES)}")
        return _TYPES[kind]

    def read(self, name: str) -> Tensor:
        """Return a tensor, on the CPU."""
        if name not in self.entries:
            raise ValueError(f"The checkpoint has no tensor {name!r}; {near(name, list(self.entries))}")
        entry, dtype = self.entries[name], self.dtype(name)
        tensor = torch.empty(entry.shape, dtype=dtype)
        if tensor.nbytes != entry.size:
            raise ValueError(f"Tensor {name!r} should have {tensor.nbytes} bytes, but the file has {entry.size}")
        with (self.folder / entry.file).open("rb", buffering=0) as file:
            file.seek(entry.start)
            view, read = memoryview(_bytes_of(tensor)).cast("B") if entry.size else memoryview(b""), 0
            while read < entry.size:
                count = file.readinto(view[read:])
                if not count:
                    raise ValueError(f"{entry.file!r} is cut short: tensor {name!r} is not whole")
                read += count
        return tensor

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors over those of the same name, and wait until they are on the disk."""
        files: dict[str, list[str]] = {}
        for name in tensors:
            files.setdefault(self.entries[name].file, []).append(name)
        for file_name, names in files.items():
            with (self.folder / file_name).open("r+b") as file:
                for name in names:
                    tensor = tensors[name].detach().to("cpu", self.dtype(name)).contiguous()
                    file.seek(self.entries[name].start)
                    if tensor.nbytes:
                        file.write(_bytes_of(tensor))
                file.flush()
                os.fsync(file.fileno())

    def at(self, folder: Path) -> SafetensorsFiles:
        """Return the same checkpoint in another folder."""
        return SafetensorsFiles(folder, self.entries, self.files, self.single)


def _bytes_of(tensor: Tensor) -> Any:
    """Return a contiguous tensor's memory."""
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())


def _header(path: Path) -> dict[str, Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else _LONGEST + 1
        if length > min(_LONGEST, size - 8):
            raise ValueError(f"{str(path)!r} is not a safetensors file, or is cut short")
        try:
            header = json.loads(file.read(length))
            entries = {
                name: _entry(path.name, 8 + length, each) for name, each in header.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{str(path)!r} is not a safetensors file: its header is damaged") from None
    for name, entry in entries.items():
        if entry.start + entry.size > size:
            raise ValueError(f"{str(path)!r} is cut short: tensor {name!r} is not whole")
    return entries


def _entry(file: str, begin: int, entry: Mapping[str, Any]) -> Entry:
    start, end = map(int, entry["data_offsets"])
    if not 0 <= start <= end:
        raise ValueError
    return Entry(file, begin + start, end - start, str(entry["dtype"]), tuple(map(int, entry["shape"])))
