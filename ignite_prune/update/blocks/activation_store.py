"""Outputs of the nodes of a relay for each batch: in memory, on another device or on disk."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ignite_prune._utils.nested import mapped, tensors_in

Offload = Literal["cpu", "disk"]
_SLAB = 1 << 26  # bytes; the C library takes large pieces from the system, and gives them back when they are free
_ALIGNED = 64


class ActivationStore(ABC):
    """Values (tensors in containers) by batch and node.

    Attributes:
        batches: their number, once it is known.
    """

    batches = 0

    @abstractmethod
    def put(self, batch: int, node: int, value: Any, dropped: Iterable[int] = ()) -> None:
        """Store the value of a node for a batch; those of nodes in ``dropped`` are no longer needed."""

    @abstractmethod
    def get(self, batch: int, node: int) -> Any:
        """Return a value; its tensors may be written to."""

    @abstractmethod
    def drop(self, batch: int, node: int) -> None:
        """Forget a value, if there is one."""


class _Slabs:
    """Memory of tensors on the CPU, taken in large pieces.

    Each value of its own would be allocated between short-lived temporaries, in whose place later ones do not fit: the
    memory of a process would grow to twice what it holds. A piece takes no memory until it is written to.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def like(self, tensor: Tensor, number: int) -> Tensor:
        """Return an uninitialised, contiguous tensor on the CPU of the shape and type of another.

        Args:
            tensor: of any device.
            number: of such tensors that are expected, this one among them.
        """
        size = -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        if size > len(self._free):
            self._free = torch.empty(max(size, min(size * number, _SLAB)), dtype=torch.uint8)
        taken, self._free = self._free[: tensor.nbytes], self._free[size:]
        return taken.view(tensor.dtype).view(tensor.shape)


def _fills_memory(tensor: Tensor) -> bool:
    """Return whether a tensor has entries, and memory for each of them: an expanded one has not."""
    return tensor.layout == torch.strided and 0 < tensor.nbytes <= tensor.untyped_storage().nbytes()


def _own(tensor: Tensor) -> Tensor:
    """Return a detached tensor that holds no more memory than its entries."""
    tensor = tensor.detach()
    return tensor if tensor.untyped_storage().nbytes() <= tensor.nbytes else tensor.clone()


class MemoryActivationStore(ActivationStore):
    """Values in memory.

    Args:
        home: where they are stored; None: where they were computed.
        device: where they are used; None: where they are stored.
    """

    def __init__(self, home: torch.device | None, device: torch.device | None) -> None:
        self._home, self._device = home, device
        self._values: dict[tuple[int, int], Any] = {}
        self._slabs = _Slabs()

    def put(self, batch: int, node: int, value: Any, dropped: Iterable[int] = ()) -> None:
        # Written over values that are no longer needed.
        old = [tensor for each in dropped for tensor in tensors_in(self._values.pop((batch, each), ()))]
        free = list({tensor.data_ptr(): tensor for tensor in old if tensor.is_contiguous()}.values())

        def kept(tensor: Tensor) -> Tensor:
            home = tensor.device if self._home is None else self._home
            for index, room in enumerate(free):
                if (room.shape, room.dtype, room.device) == (tensor.shape, tensor.dtype, home):
                    return free.pop(index).copy_(tensor)
            if home.type == "cpu" and self.batches > batch and _fills_memory(tensor):
                return self._slabs.like(tensor, self.batches - batch).copy_(tensor.detach())
            return _own(tensor.to(home))

        self._values[batch, node] = mapped(value, kept)

    def get(self, batch: int, node: int) -> Any:
        return mapped(self._values[batch, node], self._copy)

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.to(tensor.device if self._device is None else self._device, copy=True)

    def drop(self, batch: int, node: int) -> None:
        self._values.pop((batch, node), None)


class DiskActivationStore(ActivationStore):
    """Values in files, one for each batch and node; containers around the tensors stay in memory.

    Args:
        folder: where the files are; it exists.
        device: where values are used.
        lasting: wait until each value is on the disk.
    """

    def __init__(self, folder: Path, device: torch.device, lasting: bool = False) -> None:
        self._folder, self._device, self._lasting = folder, device, lasting
        self._forms: dict[tuple[int, int], Any] = {}

    def _path(self, batch: int, node: int) -> Path:
        return self._folder / f"{node}.{batch}.pt"

    def put(self, batch: int, node: int, value: Any, dropped: Iterable[int] = ()) -> None:
        tensors: list[Tensor] = []

        def numbered(tensor: Tensor) -> Tensor:
            tensors.append(_own(tensor).cpu())
            return torch.tensor(len(tensors) - 1)

        form = mapped(value, numbered)
        path = self._path(batch, node)
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as file:
            torch.save({"tensors": tensors, "form": form if is_plain_form(form) else None}, file)
            if self._lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if not is_plain_form(form):
            self._forms[batch, node] = form
        for each in dropped:
            self.drop(batch, each)

    def get(self, batch: int, node: int) -> Any:
        held = torch.load(self._path(batch, node), map_location=self._device, weights_only=True)
        form = self._forms[batch, node] if held["form"] is None else held["form"]
        return mapped(form, lambda index: held["tensors"][int(index)])

    def drop(self, batch: int, node: int) -> None:
        self._path(batch, node).unlink(missing_ok=True)
        self._forms.pop((batch, node), None)


def is_plain_form(value: Any) -> bool:
    """Return whether a value is one that ``torch.load(weights_only=True)`` takes."""
    if type(value) in (list, tuple):
        return all(map(is_plain_form, value))
    if type(value) is dict:
        return all(type(key) is str and is_plain_form(each) for key, each in value.items())
    return value is None or type(value) in (bool, int, float, str, Tensor)


@contextmanager
def stored(offload: Any, folder: str | Path | None, device: torch.device) -> Iterator[ActivationStore]:
    """Yield a store; its temporary folder, if it has one, is removed at the end.

    Args:
        offload: ``"cpu"``, ``"disk"``, or None: values stay on the device.
        folder: where to make the temporary folder; None: the system's.
        device: where values are used.

    Raises:
        ValueError: ``offload`` is none of these, or a folder is given that is not used.
        NotADirectoryError: there is no such folder.
    """
    if offload not in ("cpu", "disk", None):
        raise ValueError(f'Argument offload should be "cpu", "disk" or None, but given {offload!r}')
    if folder is not None and offload != "disk":
        raise ValueError('Argument offload_folder goes with offload="disk"')
    if offload != "disk":
        yield MemoryActivationStore(None if offload is None else torch.device(offload), device)
        return
    if folder is not None and not Path(folder).is_dir():
        raise NotADirectoryError(f"Argument offload_folder: there is no folder {str(folder)!r}")
    with tempfile.TemporaryDirectory(prefix="ignite_prune.", dir=folder) as temporary:
        yield DiskActivationStore(Path(temporary), device)
