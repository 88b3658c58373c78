"""Forward hooks that sparsify the outputs of layers without changing the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune._utils.inert_hook import InertHook
from ignite_prune._utils.state import checked_tensor
from ignite_prune.activation.base import Sparsifier
from ignite_prune.activation.k_winners import KWinners


class OutputHook:
    """A forward hook that replaces the output of a layer by its sparsified version.

    The sparsifier follows the training mode of the layer and the device of its outputs.

    Args:
        name: name of the layer.
        layer: the layer.
        sparsifier: the sparsifier of its output.

    Raises:
        ValueError: the layer is a convolution and the sparsifier ``KWinners``.

    Attributes:
        calls: number of calls since it was installed, without those in compiled code.
    """

    def __init__(self, name: str, layer: nn.Module, sparsifier: Sparsifier) -> None:
        if type(sparsifier) is KWinners and isinstance(layer, nn.modules.conv._ConvNd):
            raise ValueError(f"Layer {name!r} is a convolution, whose channels compete in KWinners2d, not in KWinners")
        self.name, self.layer, self.sparsifier, self.calls = name, layer, sparsifier, 0
        self._handle: Any = None
        self._seen = 0

    @property
    def has_run(self) -> bool:
        """Whether it was called since it was installed; calls in compiled code are only noticed in training."""
        return self.calls > 0 or int(self.sparsifier.seen) != self._seen

    def restart(self) -> None:
        """Reset the count of calls."""
        self.calls, self._seen = 0, int(self.sparsifier.seen)

    def install(self) -> None:
        """Register the hook, unless it already is."""
        if self._handle is None:
            self.restart()
            self._handle = self.layer.register_forward_hook(InertHook(self._replace))

    def remove(self) -> None:
        """Remove the hook, if it is registered."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _replace(self, layer: nn.Module, args: Any, output: Any) -> Tensor:
        return self(output)

    def __call__(self, output: Any) -> Tensor:
        """Return the sparsified output.

        Raises:
            TypeError: the layer's output is not a tensor.
        """
        if not isinstance(output, Tensor):
            raise TypeError(
                f"Layer {self.name!r} gives a {type(output).__name__}, and only a tensor can be made sparse"
            )
        if not torch.compiler.is_compiling():
            self.calls += 1
        sparsifier = self.sparsifier
        if sparsifier.seen.device != output.device:
            with torch.inference_mode(False):  # inference tensors could not be updated in training
                sparsifier.to(output.device)
        if sparsifier.training != self.layer.training:
            sparsifier.train(self.layer.training)
        result: Tensor = sparsifier(output)
        return result

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the sparsifier's state."""
        return {key: value.detach().clone() for key, value in self.sparsifier.state_dict().items()}

    def check_state(self, state: Any) -> None:
        """Check a state without loading it.

        Raises:
            ValueError: the state is of another sparsifier, or damaged.
        """
        copied = copy.deepcopy(self.sparsifier)
        try:
            for key, value in self.sparsifier.state_dict().items():
                if isinstance(state, Mapping) and key in state:
                    kind = None if value.is_floating_point() and state[key].is_floating_point() else value.dtype
                    checked_tensor(key, state[key], dtype=kind)
            copied.load_state_dict(state)
            copied.check_state()
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"The checkpoint's sparsifier of layer {self.name!r} does not fit: {error}") from None


def insertions(root: nn.Module, layers: Any) -> list[OutputHook]:
    """Return a hook for each named layer, with a copy of its sparsifier.

    Args:
        root: the unwrapped model.
        layers: sparsifiers by layer name, or by glob over layer names.

    Raises:
        TypeError: ``layers`` is not a mapping of names to sparsifiers.
        ValueError: a name matches no layer, or a layer has two sparsifiers.
    """
    if not isinstance(layers, Mapping):
        raise TypeError(f"Argument layers should be a mapping of names to sparsifiers, but given {layers!r:.80}")
    modules = {name_without_compile(path): module for path, module in root.named_modules() if path}
    made: dict[str, OutputHook] = {}
    for rule, sparsifier in layers.items():
        if not isinstance(rule, str):
            raise TypeError(f"Argument layers should have layers' names for keys, but given {rule!r:.80}")
        if not isinstance(sparsifier, Sparsifier):
            raise TypeError(
                f"Argument layers[{rule!r}] should be one of ignite_prune.activation, not {sparsifier!r:.80}"
            )
        found = [rule] if rule in modules else [name for name in modules if fnmatchcase(name, rule)]
        if not found:
            raise ValueError(f"Argument layers: the model has no layer {rule!r}; {near(rule, list(modules))}")
        for name in found:
            if name in made:
                raise ValueError(f"Argument layers: two sparsifiers for layer {name!r}")
            made[name] = OutputHook(name, modules[name], copy.deepcopy(sparsifier))
    return list(made.values())


def name_without_compile(name: str) -> str:
    """Return a module's name without the ``_orig_mod`` parts that ``torch.compile`` adds."""
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod")
