"""The weights of the blocks of a model that is in memory, moved to a device and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class BlockWeights:
    """Brings blocks to the device where they run.

    Args:
        model: unwrapped.
        blocks: by name.
        device: None: each where it is.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[str, nn.Module], device: torch.device | None) -> None:
        self._model, self._blocks, self._device = model, blocks, device

    @contextmanager
    def around(self) -> Iterator[None]:
        """Bring everything outside of the blocks to the device, and back at the end."""
        if self._device is None:
            yield
            return
        inside = {module for block in self._blocks.values() for module in block.modules()}
        with _moved([module for module in self._model.modules() if module not in inside], self._device, False):
            yield

    @contextmanager
    def present(self, name: str) -> Iterator[None]:
        """Bring a block to the device, and back at the end with the values that it has then."""
        if self._device is None or name not in self._blocks:
            yield
            return
        with _moved(list(self._blocks[name].modules()), self._device, True):
            yield

    def complete(self) -> bool:
        """Return False: the weights outside of the blocks are in memory from the start, so none are read."""
        return False


@contextmanager
def _moved(modules: list[nn.Module], device: torch.device, changes: bool) -> Iterator[None]:
    tensors = {id(t): t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None}
    homes: list[tuple[Tensor, Tensor]] = []
    try:
        for tensor in tensors.values():
            if tensor.device != device:
                home = tensor.data
                tensor.data = home.to(device)
                homes.append((tensor, home))
        yield
    finally:
        for tensor, home in homes:
            if changes:
                home.copy_(tensor.data)
            tensor.data = home
