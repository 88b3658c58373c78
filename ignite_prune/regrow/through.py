"""A model that computes with masked weights and keeps the dense ones: weights change places around each forward."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ignite_prune.evidence.hooks import is_running
from ignite_prune.masks import MaskStore
from ignite_prune.select import unwrap


class Through:
    """While the model's forward runs, each masked parameter's place holds ``weight * mask``; the gradient goes straight
    through to the parameter, dense.

    Nothing but a running forward ever sees it: class, ``state_dict()`` and optimizer have the parameter itself,
    whatever way the forward ends. A copy of the model computes densely. A part that is called outside the model's own
    forward (also by activation checkpointing, which calls it again in the backward pass) computes densely too.

    Args:
        model: whose forward it is.
        masks: of its parameters.

    Raises:
        ValueError: a recurrent layer, which holds its weights in a list of its own; names it.
    """

    def __init__(self, model: nn.Module, masks: MaskStore) -> None:
        self._root, self._masks = unwrap(model), masks
        names = {parameter: name for name, parameter in masks.parameters.items()}
        self._places = [
            (module, leaf, names[parameter])
            for module in self._root.modules()
            for leaf, parameter in module._parameters.items()
            if parameter is not None and parameter in names
        ]
        for module, _, name in self._places:
            if isinstance(module, nn.RNNBase):
                raise ValueError(
                    f"Parameter {name!r} is of a recurrent layer, which reads its weights from a list of its own; "
                    "leave it out with exclude="
                )
        self._handles: list[RemovableHandle] = []
        self._frames: list[types.FrameType] = []  # of the forwards that run, one in the other
        self._away: list[tuple[nn.Module, str, Any]] = []

    def install(self) -> None:
        """Put the hooks on, where they are not."""
        if not self._handles:
            self._handles = [
                self._root.register_forward_pre_hook(Hook(self._enter), prepend=True),
                self._root.register_forward_hook(Hook(self._leave), always_call=True),
                self._root.register_state_dict_pre_hook(Hook(self._check)),  # type: ignore[no-untyped-call]
            ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._put_back()

    def _enter(self) -> None:
        self._check()
        self._frames.append(sys._getframe(2))
        if len(self._frames) > 1:  # the model calls itself
            return
        made: dict[Tensor, Tensor] = {}
        for module, leaf, name in self._places:
            weight, mask = module._parameters[leaf], self._masks.pruned(name)
            if weight is not None and mask is not None:
                if weight not in made:
                    made[weight] = _Masked.apply(weight, mask)  # type: ignore[no-untyped-call]
                self._away.append((module, leaf, weight))
                module._parameters[leaf] = made[weight]  # type: ignore[assignment]

    def _leave(self) -> None:
        if self._frames:
            self._frames.pop()
        if not self._frames:
            self._put_back()

    def _check(self) -> None:
        """Put the weights back where a forward never came to its end: a KeyboardInterrupt passes the hooks by."""
        if self._frames and not is_running(self._frames[0]):
            self._put_back()

    def _put_back(self) -> None:
        self._frames.clear()
        for module, leaf, weight in self._away:
            module._parameters[leaf] = weight
        self._away.clear()


class Hook:
    """A module hook that copies and pickles as one that does nothing."""

    def __init__(self, run: Callable[[], None] | None = None) -> None:
        self._run = run

    def __call__(self, *_: Any) -> None:
        if self._run is not None:
            self._run()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


class _Masked(torch.autograd.Function):
    """``weight * mask`` forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None
