"""Lets gatherers hear a forward pass: one watch for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune.evidence.collectors.activations import FollowingScales
from ignite_prune.evidence.collectors.base import Gatherer
from ignite_prune.evidence.collectors.synflow import InputShapes
from ignite_prune.evidence.forward.attention_heads import Attention
from ignite_prune.evidence.forward.layer_calls import Use
from ignite_prune.evidence.forward.observer import Watch, watching


def one() -> float:
    """Return the scale of gradients in a calibration pass."""
    return 1.0


def always() -> bool:
    """Listen to every pass."""
    return True


class Ears:
    """Passes what a watch sees on to the gatherers that want it.

    Args:
        gatherers: who listens.
        scale: how much too large gradients will be (by a GradScaler), asked when a forward pass runs.
        listening: whether the pass that runs now is to be heard.
    """

    def __init__(
        self, gatherers: Sequence[Gatherer], scale: Callable[[], float] = one, listening: Callable[[], bool] = always
    ) -> None:
        self._scale, self._listening = scale, listening
        self.shapes = [gatherer for gatherer in gatherers if isinstance(gatherer, InputShapes)]
        self._scales = [gatherer for gatherer in gatherers if isinstance(gatherer, FollowingScales)]
        hear = {kind: [g for g in gatherers if kind in g.hears] for kind in ("inputs", "activations", "heads")}
        self._inputs, self._activations, self._heads = hear["inputs"], hear["activations"], hear["heads"]

    def watch(self) -> Watch | None:
        """Return a watch over everything the gatherers want to hear of; None where that is nothing."""
        parameters = {
            name: parameter
            for gatherer in (*self._inputs, *self._activations, *self._heads)
            for name, parameter in gatherer.parameters.items()
        }
        if not parameters:
            return None
        return _Reporting(
            self,
            parameters,
            on_input=self._input if self._inputs else None,
            on_activation=self._activation if self._activations else None,
            on_heads=self._head if self._heads else None,
        )

    def entered(self, args: Any, kwargs: Any) -> None:
        """Pass the model's input on."""
        for gatherer in self.shapes:
            gatherer.entered(args, kwargs)

    def left(self, watch: Watch) -> None:
        """Pass on what is known at the end of a forward pass."""
        for gatherer in self._scales:
            gatherer.normed(watch.norms)
        for hearing in (*self._inputs, *self._activations):
            hearing.unknown.update(watch.unknown)

    def _input(self, name: str, use: Use) -> None:
        if not self._listening():
            return
        for gatherer in self._inputs:
            if name in gatherer.parameters:
                gatherer.used(name, use)

    def _activation(self, name: str, z: Tensor, dim: int, samples: int) -> None:
        if not self._listening():
            return
        scale = self._scale()
        for gatherer in self._activations:
            if name in gatherer.parameters:
                gatherer.activation(name, z, (samples, dim), scale)

    def _head(self, attention: Attention) -> None:
        if not self._listening():
            return
        scale = self._scale()
        for gatherer in self._heads:
            gatherer.heads(attention, scale)


class _Reporting(Watch):
    """A watch that tells what it knows at the end of each pass."""

    def __init__(self, ears: Ears, parameters: Mapping[str, nn.Parameter], **listeners: Any) -> None:
        super().__init__(parameters, **listeners)
        self._ears = ears

    def finish(self) -> None:
        super().finish()
        self._ears.left(self)


class Entering:
    """A forward pre-hook that passes the model's input on; in a copy or a pickle of the model it does nothing."""

    def __init__(self, ears: Ears | None = None) -> None:
        self._ears = ears

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._ears is not None and not torch.compiler.is_compiling():
            self._ears.entered(args, kwargs)

    def __reduce__(self) -> tuple[type[Entering], tuple[()]]:
        return Entering, ()


@contextmanager
def watch_for(model: nn.Module, gatherers: Sequence[Gatherer]) -> Iterator[None]:
    """Let gatherers hear the forward passes inside."""
    ears = Ears(gatherers)
    watch = ears.watch()
    with ExitStack() as hooks:
        if ears.shapes:
            hooks.callback(model.register_forward_pre_hook(Entering(ears), with_kwargs=True).remove)
        if watch is not None:
            hooks.enter_context(watching(model, watch))
        yield
