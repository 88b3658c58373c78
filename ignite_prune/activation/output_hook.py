"""A sparsifier on a layer's output, by a hook that leaves the model as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.arguments import near
from ignite_prune._utils.inert_hook import InertHook
from ignite_prune.activation.base import Sparsifier
from ignite_prune.activation.k_winners import KWinners


class OutputHook:
    """A sparsifier between a layer's output and whatever comes next.

    It trains and rests with the layer, on the device of what it is given.

    Args:
        name: the layer's.
        layer: whose output becomes sparse.
        sparsifier: what makes it so.

    Raises:
        ValueError: ``KWinners`` behind a convolution.

    Attributes:
        calls: how often it was run since it was installed, compiled code excepted.
    """

    def __init__(self, name: str, layer: nn.Module, sparsifier: Sparsifier) -> None:
        if type(sparsifier) is KWinners and isinstance(layer, nn.modules.conv._ConvNd):
            raise ValueError(f"Layer {name!r} is a convolution, whose channels compete in KWinners2d, not in KWinners")
        self.name, self.layer, self.sparsifier, self.calls = name, layer, sparsifier, 0
        self._handle: Any = None
        self._seen = 0

    @property
    def has_run(self) -> bool:
        """Whether it has been run since it was installed, compiled too where it trains."""
        return self.calls > 0 or int(self.sparsifier.seen) != self._seen

    def restart(self) -> None:
        """Count runs from now on."""
        self.calls, self._seen = 0, int(self.sparsifier.seen)

    def install(self) -> None:
        """Put the hook on; again does nothing."""
        if self._handle is None:
            self.restart()
            self._handle = self.layer.register_forward_hook(InertHook(self._replace))

    def remove(self) -> None:
        """Take it off."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _replace(self, layer: nn.Module, args: Any, output: Any) -> Tensor:
        return self(output)

    def __call__(self, output: Any) -> Tensor:
        """Return the output made sparse.

        Raises:
            TypeError: the layer gives something else than one tensor.
        """
        if not isinstance(output, Tensor):
            raise TypeError(
                f"Layer {self.name!r} gives a {type(output).__name__}, and only a tensor's entries can be made sparse"
            )
        if not torch.compiler.is_compiling():
            self.calls += 1
        sparsifier = self.sparsifier
        if sparsifier.seen.device != output.device:
            with torch.inference_mode(False):  # else it could not be trained with later
                sparsifier.to(output.device)
        if sparsifier.training != self.layer.training:
            sparsifier.train(self.layer.training)
        result: Tensor = sparsifier(output)
        return result

    def state(self) -> dict[str, Tensor]:
        """Return the sparsifier's state, a copy."""
        return {key: value.detach().clone() for key, value in self.sparsifier.state_dict().items()}

    def check_state(self, state: Any) -> None:
        """Raise where a state does not fit.

        Raises:
            ValueError: of another sparsifier, or damaged.
        """
        trial = copy.deepcopy(self.sparsifier)
        try:
            trial.load_state_dict(state)
            trial.check_state()
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"The checkpoint's sparsifier of layer {self.name!r} does not fit: {error}") from None


def insertions(root: nn.Module, layers: Any) -> list[OutputHook]:
    """Return an insertion for each named layer, with a sparsifier of its own.

    Args:
        root: the model, unwrapped.
        layers: sparsifiers by layers' names or globs over names.

    Raises:
        TypeError, ValueError: something else, a name that no layer has, two sparsifiers for one layer.
    """
    if not isinstance(layers, Mapping):
        raise TypeError(f"Argument layers should be a mapping of names to sparsifiers, but given {layers!r:.80}")
    modules = {plain(path): module for path, module in root.named_modules() if path}
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


def plain(name: str) -> str:
    """Return a module's name without what ``torch.compile`` puts into it."""
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod")
