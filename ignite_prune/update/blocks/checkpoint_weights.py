"""The weights of a model that is larger than memory: read from files when a module needs them, dropped afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ignite_prune._utils.arguments import near
from ignite_prune.core.selection import unwrap
from ignite_prune.update.blocks.safetensors_files import SafetensorsFiles


def built_empty(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the model that ``build`` makes, its parameters on the meta device, its buffers real.

    Buffers that no checkpoint holds (the frequencies of rotary embeddings) are computed by the modules' constructors,
    so that they have to be real.

    Raises:
        TypeError: it does not return a module.
    """

    def empty(module: nn.Module, name: str, parameter: Any) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(empty)
    try:
        model = build()
    finally:
        handle.remove()
    if not isinstance(model, nn.Module):
        raise TypeError(f"Argument build should return a torch.nn.Module, but it returned {type(model)}")
    return unwrap(model).eval()


class CheckpointWeights:
    """Brings weights from files into a model, whose parameters are on the meta device otherwise.

    Args:
        model: from :func:`built_empty`.
        blocks: by name.
        files: to read from.
        rename: returns the checkpoint's name of a parameter or buffer.
        device: where modules run.
        dtype: type in which weights are held; None: that of the files.

    Attributes:
        completed: whether all that is outside of the blocks was read.

    Raises:
        ValueError: the checkpoint lacks a parameter or has it in another shape; a buffer that it lacks is not real.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, nn.Module],
        files: SafetensorsFiles,
        rename: Callable[[str], str],
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self._model, self._blocks, self._files = model, blocks, files
        self._device, self._dtype = device, dtype
        self.keys = _keys(model, files, rename)
        self._load_buffers(rename)
        self._loaded, self.completed = set[nn.Module](), False

    def _load_buffers(self, rename: Callable[[str], str]) -> None:
        for path, module in self._model.named_modules():
            for leaf, buffer in module._buffers.items():
                name = f"{path}.{leaf}" if path else leaf
                key = rename(name)
                if buffer is None:
                    continue
                if key in self._files.entries and leaf not in module._non_persistent_buffers_set:
                    module._buffers[leaf] = self._read(key).to(self._device)
                elif buffer.is_meta:
                    raise ValueError(
                        f"Buffer {name!r} is on the meta device and not in the checkpoint; let build= make the model "
                        "without torch.device('meta'): its parameters take no memory either way"
                    )
                else:
                    module._buffers[leaf] = buffer.to(self._device)

    def _read(self, key: str) -> Tensor:
        tensor = self._files.read(key)
        return tensor.to(self._dtype) if self._dtype is not None and tensor.is_floating_point() else tensor

    @contextmanager
    def around(self) -> Iterator[None]:
        """Read what is outside of the blocks when a forward calls it; it stays until the end."""
        inside = {module for block in self._blocks.values() for module in block.modules()}
        above = {m for m in self._model.modules() if any(each in inside for each in m.modules())} - inside
        handles = []
        for module in self._model.modules():
            if module not in inside:
                handles.append(module.register_forward_pre_hook(lambda module, _: self._load(module, module in above)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _load(self, module: nn.Module, alone: bool) -> None:
        """Read a module, once; ``alone``: its own parameters, as it contains blocks."""
        if module in self._loaded:
            return
        self._loaded.add(module)
        lists = [c for c in module.children() if isinstance(c, (nn.ParameterList, nn.ParameterDict))]
        self._fill([module, *lists] if alone else module.modules())

    def complete(self) -> bool:
        """Read every weight outside of the blocks, for a model that uses weights of modules that it does not call."""
        if self.completed:
            return False
        self.completed = True
        inside = {module for block in self._blocks.values() for module in block.modules()}
        rest = [module for module in self._model.modules() if module not in inside]
        self._loaded.update(rest)
        return bool(self._fill(rest))

    def _fill(self, modules: Iterable[nn.Module]) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
        """Put real parameters in place of empty ones; return these with their places."""
        places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for module in modules:
            for leaf, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta:
                    places.setdefault(parameter, []).append((module, leaf))
        for empty, where in places.items():
            real = nn.Parameter(self._read(self.keys[empty]).to(self._device), empty.requires_grad)
            for module, leaf in where:
                module._parameters[leaf] = real
        return places

    @contextmanager
    def present(self, name: str) -> Iterator[None]:
        """Read a block, and drop it at the end."""
        block = self._blocks.get(name)
        filled = {} if block is None else self._fill(block.modules())
        try:
            yield
        finally:
            for empty, where in filled.items():
                for module, leaf in where:
                    module._parameters[leaf] = empty

    @contextmanager
    def hollow(self) -> Iterator[None]:
        """Have parameters of no memory that are not on the meta device, for checks and selections by name and shape."""
        places = [(m, leaf, p) for m in self._model.modules() for leaf, p in m._parameters.items() if p is not None]
        made: dict[nn.Parameter, nn.Parameter] = {}
        try:
            for module, leaf, parameter in places:
                if parameter not in made:
                    empty = torch.zeros((), dtype=self._files.dtype(self.keys[parameter])).expand(parameter.shape)
                    made[parameter] = nn.Parameter(empty, requires_grad=empty.is_floating_point())
                module._parameters[leaf] = made[parameter]
            yield
        finally:
            for module, leaf, parameter in places:
                module._parameters[leaf] = parameter


def _keys(model: nn.Module, files: SafetensorsFiles, rename: Callable[[str], str]) -> dict[nn.Parameter, str]:
    """Return the checkpoint's name of each parameter; a tied one may be there under any of its names."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(rename(name))
    keys = {}
    for parameter, called in names.items():
        found = [name for name in called if name in files.entries]
        if not found:
            raise ValueError(
                f"The checkpoint has no tensor {called[0]!r}; {near(called[0], list(files.entries))}. Where names "
                "differ, rename= maps the model's to the checkpoint's"
            )
        shape = files.entries[found[0]].shape
        if shape != tuple(parameter.shape):
            raise ValueError(
                f"Parameter {called[0]!r} has the shape {tuple(parameter.shape)} in the model that build= made, but "
                f"{shape} in the checkpoint"
            )
        keys[parameter] = found[0]
    return keys
