"""Zero stays zero: hooks that keep pruned gradients, weights and optimizer slots at exactly 0.

The usual step costs one masked product a parameter: gradients are masked as soon as they are accumulated, while they
are in the cache, and where gradient, slots and weight are 0 most optimizers leave them so. Tensors' version counters
tell when anything else has written to a gradient or a weight since; only then it is masked again before the step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune.bits import zero_
from ignite_prune.masks import MaskStore
from ignite_prune.optimizer_state import Repair, holds, masks_changed, repair_after_step, zero_slots_


class Enforcer:
    """Installs, removes and runs the hooks that keep the masks of a store.

    Args:
        masks: the masks to keep.
        optimizers: those that train the store's parameters; may be none.
    """

    def __init__(self, masks: MaskStore, optimizers: Sequence[Optimizer]) -> None:
        self._masks = masks
        self._optimizers = {
            optimizer: [(name, p) for name, p in masks.parameters.items() if holds(optimizer, p)]
            for optimizer in optimizers
        }
        self._handles: list[RemovableHandle] = []
        self._hooked: dict[str, RemovableHandle] = {}
        self._clean: dict[str, tuple[weakref.ref[Tensor], int]] = {}  # gradients masked, at which version
        self._weights: dict[str, int] = {}  # versions at which weights were last seen masked

    def install(self) -> None:
        """Put the hooks on; where they are, only parameters that have become trainable since get theirs."""
        if not self._handles:
            for optimizer in self._optimizers:
                self._handles += [
                    optimizer.register_step_pre_hook(self._before_step),
                    optimizer.register_step_post_hook(self._after_step),
                    optimizer.register_load_state_dict_post_hook(self._after_load),
                ]
        for name, parameter in self._masks.parameters.items():
            if parameter.requires_grad and name not in self._hooked:
                hook = self._gradient_hook(name)
                self._hooked[name] = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Take every hook off."""
        for handle in (*self._handles, *self._hooked.values()):
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        self._clean.clear()
        self._weights.clear()

    def apply(self) -> None:
        """Mask weights, gradients and slots now; masks have changed."""
        for name, parameter in self._masks.parameters.items():
            mask = self._masks.pruned(name)
            if mask is None:
                continue
            self._zero_weight(name, parameter, mask)
            if parameter.grad is not None:
                self._zero_gradient(name, parameter.grad, mask)
            for optimizer in self._optimizers:
                zero_slots_(optimizer, parameter, mask, names=None)
        if any(self._masks.flips.values()):
            for optimizer in self._optimizers:
                masks_changed(optimizer)

    def settle(self) -> None:
        """Mask what is not yet 0 and leave the rest untouched to the bit; a state has been loaded."""
        for optimizer in self._optimizers:
            self._after_load(optimizer)
        for name, parameter in self._masks.parameters.items():
            mask = self._masks.pruned(name)
            if mask is not None and bool((parameter.detach().ne(0) & ~mask).any()):
                self._zero_weight(name, parameter, mask)

    def _gradient_hook(self, name: str) -> Callable[[Tensor], None]:
        def mask_gradient(parameter: Tensor) -> None:
            mask = self._masks.pruned(name)
            if mask is not None and parameter.grad is not None:
                self._zero_gradient(name, parameter.grad, mask)

        return mask_gradient

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for name, parameter in self._optimizers[optimizer]:
            mask = self._masks.pruned(name)
            if mask is None:
                continue
            if parameter._version != self._weights.get(name):
                self._zero_weight(name, parameter, mask)
            grad = parameter.grad
            if grad is not None and not self._is_clean(name, grad):
                self._zero_gradient(name, grad, mask)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        repair = repair_after_step(optimizer)
        for name, parameter in self._optimizers[optimizer]:
            mask = self._masks.pruned(name)
            if mask is not None and repair:
                self._repair(optimizer, name, parameter, mask, repair)
            self._weights[name] = parameter._version

    def _repair(self, optimizer: Optimizer, name: str, parameter: nn.Parameter, mask: Tensor, repair: Repair) -> None:
        if repair.weight:
            self._zero_weight(name, parameter, mask)
        zero_slots_(optimizer, parameter, mask, repair.slots)

    def _after_load(self, optimizer: Optimizer) -> None:
        for name, parameter in self._optimizers[optimizer]:
            mask = self._masks.pruned(name)
            if mask is not None:
                zero_slots_(optimizer, parameter, mask, names=None, only_where_needed=True)

    @torch.no_grad()
    def _zero_weight(self, name: str, parameter: nn.Parameter, mask: Tensor) -> None:
        zero_(parameter, mask)
        self._weights[name] = parameter._version

    def _zero_gradient(self, name: str, grad: Tensor, mask: Tensor) -> None:
        if grad.is_sparse:  # an embedding's: rows that were looked up
            zero_(grad._values(), mask[tuple(grad._indices())])
        else:
            zero_(grad, mask)
        self._clean[name] = (weakref.ref(grad), grad._version)

    def _is_clean(self, name: str, grad: Tensor) -> bool:
        seen, version = self._clean.get(name, (None, -1))
        return seen is not None and seen() is grad and version == grad._version
