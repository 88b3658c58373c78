"""A model that computes with masked weights and keeps the dense ones: weights change places around each forward."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.inert_hook import InertHook, is_running
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.selection import unwrap


class MaskedForward:
    """While a forward runs, each masked parameter's place holds ``weight * mask``; the gradient goes straight through
    to the parameter, dense.

    Nothing but a running forward ever sees it: class, ``state_dict()`` and optimizer have the parameter itself,
    whatever way the forward ends. A part that is called by itself, as activation checkpointing does in the backward
    pass, computes with its own masks. A copy of the model computes densely, and so does what reads a layer's weight
    outside any module's forward, and a model that was compiled, and run, before; :meth:`check` finds the last.

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
        self._told: set[str] = set()  # parameters whose gradient came through their mask, since :meth:`check`
        self._handles: list[RemovableHandle] = []
        self._frames: list[types.FrameType] = []  # of the forwards that run, one in the other
        self._away: list[tuple[nn.Module, str, Any]] = []

    def install(self) -> None:
        """Put the hooks on, where they are not."""
        if self._handles:
            return
        self._handles.append(self._root.register_state_dict_pre_hook(InertHook(self._check)))  # type: ignore[no-untyped-call]
        owners = {module for module, _, _ in self._places}
        for module in self._root.modules():
            if not owners.isdisjoint(module.modules()):
                self._handles += [
                    module.register_forward_pre_hook(InertHook(self._enter), prepend=True),
                    module.register_forward_hook(InertHook(self._leave), always_call=True),
                ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._told.clear()
        self._put_back()

    def check(self, names: Collection[str]) -> None:
        """Raise where no gradient of the parameters named has come through its mask since they were last checked.

        Raises:
            RuntimeError: says so.
        """
        masked = {name for name in names if self._masks.pruned(name) is not None}
        if masked and masked.isdisjoint(self._told):
            raise RuntimeError(
                f"The gradient of {min(masked)!r} did not come through its mask: the model was computed densely. If it "
                "is compiled, make the handler before its first call, or call torch.compiler.reset()"
            )
        self._told -= masked

    def _enter(self, called: nn.Module, *_: Any) -> None:
        self._check()
        self._frames.append(sys._getframe(2))
        if len(self._frames) > 1:  # a part of what runs already
            return
        parts = set(called.modules())
        made: dict[Tensor, Tensor] = {}
        for module, leaf, name in self._places:
            weight, mask = module._parameters[leaf], self._masks.pruned(name)
            if weight is not None and mask is not None and module in parts:
                if weight not in made:
                    made[weight] = _Masked.apply(weight, mask, partial(self._told.add, name))  # type: ignore[no-untyped-call]
                self._away.append((module, leaf, weight))
                module._parameters[leaf] = made[weight]  # type: ignore[assignment]

    def _leave(self, *_: Any) -> None:
        if self._frames:
            self._frames.pop()
        if not self._frames:
            self._put_back()

    def _check(self, *_: Any) -> None:
        """Put the weights back where a forward never came to its end: a KeyboardInterrupt passes the hooks by."""
        if self._frames and not is_running(self._frames[0]):
            self._put_back()

    def _put_back(self) -> None:
        self._frames.clear()
        for module, leaf, weight in self._away:
            module._parameters[leaf] = weight
        self._away.clear()


class _Masked(torch.autograd.Function):
    """``weight * mask`` forward, the identity backward, which tells that it has been."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, tell: Callable[[], None]) -> Tensor:
        ctx.tell = tell
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.tell()
        return grads[0], None, None
