"""Zero stays zero: hooks that keep pruned gradients, weights and optimizer slots at exactly 0.

Gradients are masked as soon as they are accumulated, while they are in the cache and before anything clips them;
weights are masked after every step, whatever the optimizer did to them; both again before the step where something has
written to them since. Where gradient, weight and slots are 0, most optimizers leave the slots so;
``optimizer_state`` knows which do not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.bits import zero_, zero_any_
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.optimizer_state import masks_changed, slots_to_repair, zero_slots_

_PROBES = 128


class MaskEnforcer:
    """Installs, removes and runs the hooks that keep the masks of a store.

    Args:
        masks: the masks to keep.
        optimizers: those that train the store's parameters; may be none.
        weights: without it weights are left as they are, and only gradients and slots are masked.

    Attributes:
        passing: parameters whose gradients pass unmasked for now; whoever adds a name sees to what a step makes of it.
    """

    def __init__(self, masks: MaskStore, optimizers: Sequence[Optimizer], *, weights: bool = True) -> None:
        self.passing: set[str] = set()
        self._masks, self._weights = masks, weights
        self._optimizers = list(optimizers)
        self._names = {parameter: name for name, parameter in masks.parameters.items()}
        self._handles: list[RemovableHandle] = []
        self._hooked: dict[str, RemovableHandle] = {}
        self._clean: dict[str, tuple[weakref.ref[Tensor], int]] = {}  # gradients masked, at which version
        self._probes: dict[str, Tensor] = {}  # a few pruned positions, by name
        self._zeroed: dict[str, int] = {}  # at which version weights were masked
        self._loaded = False  # slots have been loaded since they were last masked
        self._applied = -1  # which state of the masks the slots were masked for

    def install(self) -> None:
        """Put the hooks on; where they are, only parameters that have become trainable since get theirs."""
        if not self._handles:
            for optimizer in self._optimizers:
                self._handles += [
                    optimizer.register_step_pre_hook(self._before_step),
                    optimizer.register_step_post_hook(self._after_step),
                    optimizer.register_load_state_dict_post_hook(self._has_loaded),
                ]
        for name, parameter in self._masks.parameters.items():
            self._hook_gradient(name, parameter)

    @property
    def hooked(self) -> Collection[str]:
        """The parameters whose gradients have a hook of this enforcer."""
        return self._hooked.keys()

    def remove(self) -> None:
        """Take every hook off."""
        for handle in (*self._handles, *self._hooked.values()):
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        self._clean.clear()

    @torch.no_grad()
    def apply(self, kept: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Mask weights, gradients and slots now; masks have changed.

        Args:
            kept: what keeps its weight and its slots, by name: less than the mask, where entries begin anew from 0.
        """
        self._probes.clear()
        for name, parameter in self._masks.parameters.items():
            mask = self._masks.pruned(name)
            if mask is not None and parameter.grad is not None:
                self._zero_gradient(name, parameter.grad, mask)
            mask = kept.get(name, mask)
            if mask is not None:
                if self._weights:
                    zero_(parameter, mask)
                    self._zeroed[name] = parameter._version
                for optimizer in self._optimizers:
                    zero_slots_(optimizer, parameter, mask)
        if any(self._masks.flips.values()):
            for optimizer in self._optimizers:
                masks_changed(optimizer)
        self._applied = self._masks.changes

    def settle(self) -> None:
        """Mask what is not yet 0 and leave the rest untouched to the bit; a state has been loaded."""
        for optimizer in self._optimizers:
            for _, parameter, kept in self._pruned(optimizer):
                zero_slots_(optimizer, parameter, kept, only_where_needed=True)
        for name, parameter in self._masks.parameters.items():
            mask = self._masks.pruned(name)
            if self._weights and mask is not None and bool((parameter.detach().ne(0) & ~mask).any()):
                with torch.no_grad():
                    zero_(parameter, mask)
        self._probes.clear()
        self._applied, self._loaded = self._masks.changes, False

    def _hook_gradient(self, name: str, parameter: nn.Parameter) -> None:
        if parameter.requires_grad and name not in self._hooked:
            hook = self._gradient_hook(name)
            self._hooked[name] = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _gradient_hook(self, name: str) -> Callable[[Tensor], None]:
        def mask_gradient(parameter: Tensor) -> None:
            mask = self._masks.pruned(name)
            if mask is not None and parameter.grad is not None and name not in self.passing:
                self._zero_gradient(name, parameter.grad, mask)

        return mask_gradient

    def _pruned(self, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """The optimizer's parameters of now (groups may have been added) that have something pruned, with masks."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(parameter)
                mask = None if name is None else self._masks.pruned(name)
                if name is not None and mask is not None:
                    self._hook_gradient(name, parameter)
                    yield name, parameter, mask

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._applied != self._masks.changes:  # the store was written to from outside
            self.apply()
        if self._loaded:
            self.settle()
        for name, parameter, mask in self._pruned(optimizer):
            if self._weights and parameter._version != self._zeroed.get(name):  # decay would move a weight's slots
                zero_(parameter.detach(), mask)
            grad = parameter.grad
            if grad is not None and name not in self.passing and not self._is_clean(name, grad, mask):
                self._zero_gradient(name, grad, mask)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for name, parameter, mask in self._pruned(optimizer):
            if self._weights:
                zero_(parameter, mask)
                self._zeroed[name] = parameter._version
            # A weight that is not 0 may move its slots by itself: weight decay does.
            slots = slots_to_repair(optimizer, parameter) if self._weights else None
            if slots != ():
                zero_slots_(optimizer, parameter, mask, slots)

    def _has_loaded(self, optimizer: Optimizer) -> None:
        """Mask the slots before the next step, not now: the masks that go with them may be loaded after them."""
        self._loaded = True

    def _zero_gradient(self, name: str, grad: Tensor, mask: Tensor) -> None:
        zero_any_(grad, mask)
        self._clean[name] = (weakref.ref(grad), grad._version)

    def _is_clean(self, name: str, grad: Tensor, mask: Tensor) -> bool:
        """Whether nothing has written to the gradient since it was masked; if in doubt, no.

        A write through ``.data`` moves no version counter, so a few pruned entries are looked at as well. On an
        accelerator a second product costs less than an answer.
        """
        seen, version = self._clean.get(name, (None, -1))
        if (
            seen is None
            or seen() is not grad
            or version != grad._version
            or grad.device.type != "cpu"
            or grad.is_sparse
        ):
            return False
        if name not in self._probes:
            spread = torch.arange(0, mask.numel(), max(1, mask.numel() // _PROBES))
            self._probes[name] = spread[~mask.take(spread)]
        return not grad.take(self._probes[name]).any()
