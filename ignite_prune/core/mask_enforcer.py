"""MaskEnforcer: hooks that keep pruned weights, their gradients and their optimizer slots at exactly 0.

Masking the weights once is not enough. Momentum moves a weight whose gradient is 0; weight decay and some optimizers
write to slots whose gradient is 0; clipping divides by a norm that pruned gradients would add to; a fused optimizer
skips a step; a user, a scheduler or a loaded checkpoint writes to any of these in between. So each is masked where that
is cheapest and early enough:

- gradients as soon as they are accumulated, and before a step if they were written to since (``gradient_masking``);
- weights after every step, and before it if they were written to since (``weight_masking``);
- slots when the masks change, and after a step those that the optimizer moves all the same (``slot_masking``).

This file installs the hooks and says what happens in which order. Without optimizers, the hooks are called for every
optimizer of the process that steps one of the parameters. Hooks are used, not wrappers: the optimizer and the
parameters stay the user's own objects.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.bits import is_masked, zero_
from ignite_prune._utils.shard import is_sharded, like, local
from ignite_prune.core.gradient_hooks import install_again, is_returned
from ignite_prune.core.gradient_masking import GradientMasking
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.moments import is_known, keeps_zero, masks_changed, slots_to_repair, zero_slots_
from ignite_prune.core.optimizers import Optimizers
from ignite_prune.core.probes import Probes
from ignite_prune.core.slot_masking import SlotMasking
from ignite_prune.core.step_hooks import Closure, StepHooks
from ignite_prune.core.weight_masking import LENT, WeightMasking

Pruned = tuple[str, nn.Parameter, Tensor]
"""A parameter of which something is pruned: its name, itself and its mask."""


class MaskEnforcer:
    """Installs, removes and runs the hooks that enforce the masks of a store.

    Args:
        masks: the masks to enforce.
        optimizers: the optimizers of the store's parameters; empty for every optimizer that steps them.
        weights: mask weights too; otherwise only gradients and slots are masked.

    Attributes:
        passing: names of parameters whose gradients are not masked for now; the code that adds a name is responsible
            for what the next step makes of them.
        optimizers: those given.
        steps: number of optimizer steps that the hooks have followed.
        on_alive: called before a step if pruned weights were written to since the last one, before they are masked.
        is_installed: whether the hooks are installed.
    """

    def __init__(self, masks: MaskStore, optimizers: Sequence[Optimizer], *, weights: bool = True) -> None:
        self.steps = 0
        self.on_alive: Callable[[], None] | None = None
        self.is_installed = False
        self.optimizers: Sequence[Optimizer] = optimizers
        self._masks, self._masks_weights = masks, weights
        self._optimizers = [*optimizers, *(optimizers.wrappers if isinstance(optimizers, Optimizers) else ())]
        self._handles: list[RemovableHandle | StepHooks] = []
        self._hooked: dict[str, tuple[RemovableHandle, RemovableHandle]] = {}
        self._storages: dict[str, Any] = {}  # of hooked parameters
        probes = Probes(masks)
        self._gradients = GradientMasking(masks, self._hooked, probes)
        self._weights = WeightMasking(masks, probes)
        self._slots = SlotMasking(probes)
        self._loaded = False  # slots have been loaded since they were last masked
        self._applied = -1  # which state of the masks the slots were masked for

    @property
    def passing(self) -> set[str]:
        return self._gradients.passing

    @passing.setter
    def passing(self, names: set[str]) -> None:
        self._gradients.passing = names

    @property
    def is_applied(self) -> bool:
        """Whether weights and slots have been masked since the masks were last changed."""
        return self._applied == self._masks.changes

    @property
    def hooked(self) -> Collection[str]:
        """Names of the parameters that have a gradient hook of this enforcer."""
        return self._hooked.keys()

    # Hooks

    def install(self) -> None:
        """Install the hooks; if they are installed, only on parameters that have become trainable since."""
        if not self._handles:
            try:
                for optimizer in self._optimizers:
                    self._handles.append(optimizer.register_step_pre_hook(self._before_step))
                    self._handles.append(optimizer.register_step_post_hook(self._after_step))
                    if "_optimizer_load_state_dict_post_hooks" in vars(optimizer):  # not of every wrapper
                        self._handles.append(optimizer.register_load_state_dict_post_hook(self._has_loaded))
                if not self._optimizers:
                    every = StepHooks([], self._before_any, self._after_any)
                    self._handles.append(every)
                    every.install()
            except BaseException:
                self.remove()
                raise
        for name, parameter in self._masks.parameters.items():
            self._hook_gradient(name, parameter)
        self.is_installed = True

    def remove(self) -> None:
        """Remove every hook; weights that were not masked as a whole after the last step are masked now."""
        if self._weights.unread:
            self._weights.mask_where_needed()
        self.is_installed = False
        for handle in (*self._handles, *(each for pair in self._hooked.values() for each in pair)):
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        self._storages.clear()
        self._gradients.forget()

    def _hook_gradient(self, name: str, parameter: nn.Parameter) -> None:
        if not parameter.requires_grad or name in self._hooked:
            return

        # Python's garbage collector does not see what a post-accumulate hook refers to: a strong reference from there
        # would keep the model for ever. The other hook, which it sees, keeps this object alive.
        masking = weakref.ref(self._gradients)

        def mask_gradient(parameter: Tensor) -> None:
            gradients = masking()
            if gradients is not None:
                gradients.accumulated(name, parameter.grad)

        def mask_returned(grad: Tensor) -> Tensor | None:
            mask = self._masks.pruned(name)
            if mask is None or name in self.passing or grad.is_sparse or not is_returned(parameter):
                return None
            return grad.masked_fill(~(like(mask, grad) if is_sharded(grad) else mask), 0)

        handle = parameter.register_post_accumulate_grad_hook(mask_gradient)  # type: ignore[no-untyped-call]
        handles = handle, parameter.register_hook(mask_returned)  # type: ignore[no-untyped-call]
        self._hooked[name] = handles
        self._follow_storage(name, parameter)

    def _follow_storage(self, name: str, parameter: nn.Parameter) -> None:
        enforcer = weakref.ref(self)

        def exchanged() -> None:
            held = enforcer()
            if held is not None and name in held._hooked:
                install_again(parameter)
                held._follow_storage(name, parameter)

        # With torch.__future__.set_swap_module_params_on_conversion(True), model.to() exchanges the tensor below a
        # parameter: its hooks go with the former one, whose storage is freed then. A weak reference to the parameter
        # would forbid the exchange.
        held = parameter if type(parameter) is nn.Parameter else local(parameter)
        try:
            self._storages[name] = weakref.ref(held.untyped_storage(), lambda _: exchanged())
        except (NotImplementedError, RuntimeError):  # it has no storage
            self._storages[name] = None

    # Masking all now

    @torch.no_grad()
    def apply(self, kept: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Mask weights, gradients and slots now, after the masks have changed.

        Args:
            kept: masks of the entries whose weights and slots are kept, by name; a subset of the mask where entries
                that have just been regrown start from 0.
        """
        for name, parameter in self._masks.parameters.items():
            mask = self._masks.pruned(name)
            if mask is not None and parameter.grad is not None:
                self._gradients.zero(name, parameter.grad, mask)
            mask = kept.get(name, mask)
            if mask is not None:
                if self._masks_weights:
                    zero_(parameter, mask)
                    self._weights.versions[name] = parameter._version
                for optimizer in self._optimizers:
                    if parameter in optimizer.state:
                        self._slots.zero(optimizer, name, parameter, mask)
        if any(self._masks.flips.values()):
            for optimizer in self._optimizers:
                if optimizer.state:
                    masks_changed(optimizer)
        self._applied = self._masks.changes

    def mask_weights(self) -> None:
        """Mask the weights that have pruned entries other than 0; the others are not written to."""
        self._weights.mask_where_needed()

    def settle(self) -> None:
        """Mask pruned entries that are not 0, after a state was loaded; everything else keeps its bits."""
        for optimizer in self._optimizers:
            for _, parameter, kept in self._pruned(optimizer):
                zero_slots_(optimizer, parameter, kept, only_where_needed=True)
        for name, parameter in self._masks.parameters.items():
            mask = self._masks.pruned(name)
            if self._masks_weights and mask is not None and not is_masked(parameter, mask):
                zero_(parameter.detach(), mask)
        self._applied, self._loaded = self._masks.changes, False

    # Around a step

    def _pruned(self, optimizer: Optimizer) -> list[Pruned]:
        """Return the pruned parameters that the optimizer holds now (groups may have been added), with their masks."""
        found = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._masks.name_of.get(parameter)
                mask = None if name is None else self._masks.pruned(name)
                if name is not None and mask is not None:
                    if name not in self._hooked:
                        self._hook_gradient(name, parameter)
                    found.append((name, parameter, mask))
        return found

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._gradients.awaits_reduction = False  # of a backward pass that raised
        if self._applied != self._masks.changes:  # the masks were changed without apply()
            self.apply()
        told, pruned = False, self._pruned(optimizer)
        if self._loaded:
            told = self._tell_of_alive(any(self._weights.is_alive(*each) for each in pruned))
            self.settle()
        for index, (name, parameter, mask) in enumerate(pruned):
            if self._masks_weights:
                written = self._weights.is_written(name, parameter)
                # Writes through .data are not counted: one parameter after the other is read.
                due = written or (parameter.is_cpu and index == self.steps % len(pruned))
                if due and self._weights.is_alive(name, parameter, mask, whole=written):
                    told = told or self._tell_of_alive()
                    zero_(parameter.detach(), mask)  # decay would move a weight's slots
                elif id(parameter) in LENT:
                    zero_(parameter.detach(), mask)
            self._gradients.mask_again(name, parameter.grad, mask)

    def _tell_of_alive(self, alive: bool = True) -> bool:
        if alive and self._masks_weights and self.on_alive is not None:
            self.on_alive()
        return alive

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.steps += 1
        for name, parameter, mask in self._pruned(optimizer):
            grad = parameter.grad
            if self._masks_weights and grad is None and self._weights.is_untouched(name, parameter, mask):
                continue  # not stepped; a write would spoil a graph that is still to be used
            # Without masked weights, weight decay moves the slots of a weight that is not 0.
            slots = slots_to_repair(optimizer, parameter) if self._masks_weights else None
            own: Tensor | None = mask
            if slots is None and self._masks_weights and not is_known(optimizer):
                own = self._slots.watch(optimizer, name, parameter, mask)
            if self._masks_weights:
                left = grad is not None and self._is_left_at_zero(optimizer, name, parameter, grad)
                if not self._weights.after_step(name, parameter, mask, left):
                    slots = None  # something wrote to the weight, and decay may have moved it into any slot
            if slots != () and own is not None:
                zero_slots_(optimizer, parameter, own, slots)

    def _is_left_at_zero(self, optimizer: Optimizer, name: str, parameter: nn.Parameter, grad: Tensor) -> bool:
        """Return whether the optimizer's step has left pruned weights at 0, as their gradients and slots were 0."""
        return (
            self._weights.may_be_left(local(parameter))
            and name not in self.passing
            and keeps_zero(optimizer, parameter)
            and self._gradients.is_unwritten(name, local(grad))
        )

    def _has_loaded(self, optimizer: Optimizer) -> None:
        """Mask the slots before the next step and not now: their masks may be loaded after them."""
        self._loaded = True

    def _before_any(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        self._before_step(optimizer)
        if self._slots.is_new(optimizer, self._masks.changes):  # apply() does not reach the slots of an unknown one
            for each in self._pruned(optimizer):
                self._slots.zero(optimizer, *each)
        return closure

    def _after_any(self, optimizer: Optimizer, stepped: bool) -> None:
        if self._pruned(optimizer):
            self._after_step(optimizer)
