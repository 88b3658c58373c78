"""FLOPs and times of a model's layers in a forward pass."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.interleaved import interleaved
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.structure.model_io import as_arguments, checked_device, tensors_of
from ignite_prune.structure.slicing.compare import run

_PASSES = 5


@dataclass(frozen=True)
class LayerCosts:
    """Costs of a forward pass.

    Attributes:
        flops: of the whole pass.
        seconds: of the whole pass.
        of: FLOPs by module path, of modules with parameters of their own, without those of layers inside them.
        seconds_of: seconds by module path, of all calls in a pass, in the same way.
    """

    flops: int
    seconds: float
    of: dict[str, int]
    seconds_of: dict[str, float]


def measure_layers(model: nn.Module, example_inputs: Any) -> LayerCosts:
    """Count the FLOPs of each layer in one forward pass, and take the smallest time of several.

    Raises:
        ValueError: inputs are on another device, or the forward pass fails.
    """
    checked_device(model, example_inputs)
    args, kwargs = as_arguments(model, example_inputs)
    layers = {
        path: module
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    flops: dict[str, int] = {}
    found = _flops(model, example_inputs, layers, flops)
    seconds: dict[str, float] = {}
    with undisturbed(model), torch.no_grad():
        for _ in range(_PASSES):
            for path, taken in _times(model, args, kwargs, layers).items():
                seconds[path] = min(taken, seconds.get(path, taken))
        (whole,) = interleaved([lambda: model(*args, **kwargs)])
    return LayerCosts(found, whole, flops, seconds)


def _flops(model: nn.Module, example_inputs: Any, layers: dict[str, nn.Module], found: dict[str, int]) -> int:
    """Add the FLOPs of each layer to ``found``, and return those of the model."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # slow to import
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)

    def read() -> int:
        return counter.get_total_flops()

    steps: dict[str, int] = {}  # of recurrent layers, whose kernel is one operation that the counter does not know
    recurrent = {path: each for path, each in layers.items() if isinstance(each, nn.RNNBase)}

    def note(path: str, width: int) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            steps[path] = steps.get(path, 0) + tensors_of(args)[0].numel() // width

        return hook

    handles = [each.register_forward_pre_hook(note(path, each.input_size)) for path, each in recurrent.items()]
    try:
        with sdpa_kernel(SDPBackend.MATH), _Around(layers, read, found), counter:
            run(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    total = counter.get_total_flops()
    for path, count in steps.items():
        if not found.get(path):
            weights = sum(each.numel() for name, each in recurrent[path].named_parameters() if "weight" in name)
            found[path] = 2 * weights * count
            total += found[path]
    return total


def _times(model: nn.Module, args: Any, kwargs: Any, layers: dict[str, nn.Module]) -> dict[str, float]:
    """Return the seconds of each layer in one pass."""
    found: dict[str, float] = {}
    with _Around(layers, _now, found):
        model(*args, **kwargs)
    return found


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class _Around:
    """Adds how much a reading grows in the calls of some layers to a dictionary, without the layers inside them."""

    def __init__(self, layers: dict[str, nn.Module], read: Any, found: Any) -> None:
        self._layers, self._read, self._found = layers, read, found
        self._started: list[Any] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        for path, module in self._layers.items():
            self._handles.append(module.register_forward_pre_hook(self._enter, prepend=False))
            self._handles.append(module.register_forward_hook(self._leaver(path)))

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._started.append([self._read(), 0])

    def _leaver(self, path: str) -> Any:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            start, inner = self._started.pop()
            taken = self._read() - start
            self._found[path] = self._found.get(path, 0) + taken - inner
            if self._started:
                self._started[-1][1] += taken

        return leave
