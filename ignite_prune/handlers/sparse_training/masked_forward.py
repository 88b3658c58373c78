"""Forward passes with masked weights, while the parameters stay dense.

``torch.nn.utils.parametrize`` would rename parameters and change classes. Instead hooks replace each parameter in its
module by ``weight * mask`` when a forward pass starts, and put it back when the pass ends, in whatever way it ends.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.bits import masked_copy_
from ignite_prune._utils.inert_hook import InertHook, is_running
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.selection import unwrap


class MaskedForward:
    """During a forward pass ``weight * mask`` replaces each masked parameter; the gradient goes straight through to the
    dense parameter.

    Outside a forward pass, and in ``state_dict()`` and the optimizer, there is only the parameter. A submodule that is
    called alone, as activation checkpointing does in the backward pass, computes with its own masks. A copy of the
    model computes densely, and so does code that reads a layer's weight outside any module's forward, and a model that
    was compiled and run before; :meth:`check` detects the last.

    Args:
        model: the model.
        masks: of its parameters.

    Raises:
        ValueError: a parameter of a recurrent layer, which reads its weights from a list of its own.
    """

    def __init__(self, model: nn.Module, masks: MaskStore) -> None:
        self._root, self._masks = unwrap(model), masks
        names = masks.name_of
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
        self._masked_gradients: set[str] = set()  # gradients that came through a mask since :meth:`check`
        self._handles: list[RemovableHandle] = []
        self._frames: list[types.FrameType] = []  # of the running forwards, outermost first
        self._away: list[tuple[nn.Module, str, Any]] = []

    def install(self) -> None:
        """Install the hooks, if they are not."""
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
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._masked_gradients.clear()
        self._put_back()

    def check(self, names: Collection[str]) -> None:
        """Check that the gradients of some parameters came through their masks since the last check.

        Raises:
            RuntimeError: none of them did.
        """
        masked = {name for name in names if self._masks.pruned(name) is not None}
        if masked and masked.isdisjoint(self._masked_gradients):
            raise RuntimeError(
                f"The gradient of {min(masked)!r} did not come through its mask: the model was computed densely. If it "
                "is compiled, make the handler before its first call, or call torch.compiler.reset()"
            )
        self._masked_gradients -= masked

    def _enter(self, called: nn.Module, *_: Any) -> None:
        self._check()
        self._frames.append(sys._getframe(2))
        if len(self._frames) > 1:  # a submodule of the running one
            return
        parts = set(called.modules())
        made: dict[Tensor, Tensor] = {}
        for module, leaf, name in self._places:
            weight, mask = module._parameters[leaf], self._masks.pruned(name)
            if weight is not None and mask is not None and module in parts:
                if weight not in made:
                    made[weight] = _Masked.apply(weight, mask, partial(self._masked_gradients.add, name))  # type: ignore[no-untyped-call]
                self._away.append((module, leaf, weight))
                module._parameters[leaf] = made[weight]  # type: ignore[assignment]

    def _leave(self, *_: Any) -> None:
        if self._frames:
            self._frames.pop()
        if not self._frames:
            self._put_back()

    def _check(self, *_: Any) -> None:
        """Put the weights back after a forward that ended without its hooks, as by a KeyboardInterrupt."""
        if (self._frames or self._away) and not (self._frames and is_running(self._frames[0])):
            self._put_back()

    def _put_back(self) -> None:
        for module, leaf, weight in self._away:
            module._parameters[leaf] = weight
        self._away.clear()
        self._frames.clear()


class _Masked(torch.autograd.Function):
    """The masked weight forward, the identity backward, which calls ``on_backward``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, on_backward: Callable[[], None]) -> Tensor:
        ctx.on_backward = on_backward
        return masked_copy_(torch.empty_like(weight), weight, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.on_backward()
        return grads[0], None, None
