"""MaskEnforcer: hooks that keep pruned weights, their gradients and their optimizer slots at exactly 0.

Masking the weights once is not enough. Momentum moves a weight whose gradient is 0; weight decay and some optimizers
write to slots whose gradient is 0; clipping divides by a norm that pruned gradients would add to; a fused optimizer
skips a step; a user, a scheduler or a loaded checkpoint writes to any of these in between. So each is masked where that
is cheapest and early enough:

- Gradients are masked as soon as they are accumulated, while they are in the cache and before anything clips them.
- Weights are masked after every optimizer step, whatever the optimizer did to them. On the CPU that pass is left out
  where it would change nothing: after the step of an optimizer that leaves a weight at 0 whose gradient and slots are 0
  (``moments`` knows which), if the gradient is still masked and some hundred pruned entries, other ones each time, are
  0. All entries are read at every mask update, before a state is saved, at the end of an epoch (``weight_check``) and
  when the hooks are removed, and masked again where a write through ``.data`` has escaped the reading until then.
- Both are masked again before a step if they were written to since: tensors count their in-place writes (``_version``),
  and a few pruned entries are read as well, because writes through ``.data`` are not counted.
- Slots are masked when the masks change, and after a step those that the optimizer moves although gradient, weight and
  slot are 0; ``moments`` knows which. An optimizer that it does not know is watched: where a step moves pruned weights
  although all of these are 0, it does not treat entries one by one, and its slots but the momentum are left
  alone from then on.
- Without optimizers, the hooks are called for every optimizer of the process that steps one of the parameters.

Hooks are used, not wrappers: the optimizer and the parameters stay the user's own objects.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.bits import is_masked, zero_, zero_any_
from ignite_prune._utils.shard import is_sharded, like, local
from ignite_prune.core.gradient_hooks import after_reduction, install_again, is_returned
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.moments import MOMENTUM, is_known, keeps_zero, masks_changed, slots_to_repair, zero_slots_
from ignite_prune.core.optimizers import Optimizers
from ignite_prune.core.probes import Probes
from ignite_prune.core.step_hooks import Closure, StepHooks

_DISTRIBUTED = torch.distributed.is_available()
_SMALL = 1 << 12  # entries of a weight that is masked as fast as probed
_OWNERS: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()
"""The ids of the parameters that each living object masks, and keeps alive.

Weak references to parameters or gradients would forbid ``torch.utils.swap_tensors``, and with it ``model.to()`` under
``torch.__future__.set_swap_module_params_on_conversion(True)``.
"""

LENT: set[int] = set()
"""The ids of parameters to which another handler has written values of its own for the step that is running."""


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
    """

    def __init__(self, masks: MaskStore, optimizers: Sequence[Optimizer], *, weights: bool = True) -> None:
        self.passing: set[str] = set()
        self.steps = 0
        self.on_alive: Callable[[], None] | None = None
        self.is_installed = False
        self._masks, self._weights = masks, weights
        self.optimizers: Sequence[Optimizer] = optimizers
        self._optimizers = [*optimizers, *(optimizers.wrappers if isinstance(optimizers, Optimizers) else ())]
        self._handles: list[RemovableHandle | StepHooks] = []
        self._hooked: dict[str, tuple[RemovableHandle, RemovableHandle]] = {}
        self._storages: dict[str, Any] = {}  # of hooked parameters
        self._seen: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # not given: for which masks slots are 0
        self._mixing: dict[tuple[int, str], Tensor] = {}  # by optimizer: whether its steps move pruned weights
        self._awaits_reduction = False
        self._clean: dict[str, tuple[StorageWeakRef, int]] = {}  # gradients masked, at which version
        self._probes: Probes | None = None  # for these masks, once some are needed
        self._unread: set[str] = set()  # weights that a step may be trusted to have left at 0
        self._zeroed: dict[str, int] = {}  # at which version weights were masked
        self._loaded = False  # slots have been loaded since they were last masked
        self._applied = -1  # which state of the masks the slots were masked for

    def install(self) -> None:
        """Install the hooks; if they are installed, only on parameters that have become trainable since."""
        if not self._handles:
            try:
                for optimizer in self._optimizers:
                    self._handles.append(optimizer.register_step_pre_hook(self._before_step))
                    self._handles.append(optimizer.register_step_post_hook(self._after_step))
                    self._handles.append(optimizer.register_load_state_dict_post_hook(self._has_loaded))
                if not self._optimizers:
                    self._hook_every_optimizer()
            except BaseException:
                self.remove()
                raise
        for name, parameter in self._masks.parameters.items():
            self._hook_gradient(name, parameter)
        self.is_installed = True

    @property
    def is_applied(self) -> bool:
        """Whether weights and slots have been masked since the masks were last changed."""
        return self._applied == self._masks.changes

    def _hook_every_optimizer(self) -> None:
        every = StepHooks([], self._before_any, self._after_any)
        self._handles.append(every)
        every.install()

    def _before_any(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        self._before_step(optimizer)
        if self._seen.get(optimizer) != self._masks.changes:  # apply() does not reach the slots of an unknown optimizer
            self._seen[optimizer] = self._masks.changes
            masks_changed(optimizer)
            for name, parameter, mask in self._pruned(optimizer):
                mixes = bool(self._mixing.get((id(optimizer), name), False))
                zero_slots_(optimizer, parameter, mask, MOMENTUM if mixes else None)
        return closure

    def _after_any(self, optimizer: Optimizer, stepped: bool) -> None:
        if any(True for _ in self._pruned(optimizer)):
            self._after_step(optimizer)

    @property
    def hooked(self) -> Collection[str]:
        """Names of the parameters that have a gradient hook of this enforcer."""
        return self._hooked.keys()

    def remove(self) -> None:
        """Remove every hook; weights that were not masked as a whole after the last step are masked now."""
        if self._unread:
            self.mask_weights()
        self.is_installed = False
        for handle in (*self._handles, *(each for pair in self._hooked.values() for each in pair)):
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        self._storages.clear()
        self._clean.clear()

    @torch.no_grad()
    def apply(self, kept: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Mask weights, gradients and slots now, after the masks have changed.

        Args:
            kept: masks of the entries whose weights and slots are kept, by name; a subset of the mask where entries
                that have just been regrown start from 0.
        """
        self._probes = None
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
                    if parameter in optimizer.state:
                        mixes = bool(self._mixing.get((id(optimizer), name), False))
                        zero_slots_(optimizer, parameter, mask, MOMENTUM if mixes else None)
        if any(self._masks.flips.values()):
            for optimizer in self._optimizers:
                if optimizer.state:
                    masks_changed(optimizer)
        self._applied = self._masks.changes

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Mask the weights that have pruned entries other than 0; a weight that is as it should be is not written to.

        Each write to a weight makes autograd refuse the graphs that were built with it before.
        """
        for name, parameter in self._masks.parameters.items():
            mask = self._masks.pruned(name)
            if mask is not None and (name in self._unread or not self._is_untouched(name, parameter, mask)):
                if not is_masked(parameter, mask):
                    zero_(parameter, mask)
                self._zeroed[name] = parameter._version
        self._unread.clear()

    def settle(self) -> None:
        """Mask pruned entries that are not 0, after a state was loaded; everything else keeps its bits."""
        for optimizer in self._optimizers:
            for _, parameter, kept in self._pruned(optimizer):
                zero_slots_(optimizer, parameter, kept, only_where_needed=True)
        for name, parameter in self._masks.parameters.items():
            mask = self._masks.pruned(name)
            if self._weights and mask is not None and not is_masked(parameter, mask):
                zero_(parameter.detach(), mask)
        self._probes = None
        self._applied, self._loaded = self._masks.changes, False

    def _hook_gradient(self, name: str, parameter: nn.Parameter) -> None:
        if not parameter.requires_grad or name in self._hooked:
            return

        # Python's garbage collector does not see what a post-accumulate hook refers to: a strong reference from there
        # would keep the model for ever. The other hook, which it sees, keeps this object alive.
        itself = weakref.ref(self)

        def mask_gradient(parameter: Tensor) -> None:
            enforcer = itself()
            if enforcer is not None:
                enforcer._mask_accumulated(name, parameter.grad)

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

    def _mask_accumulated(self, name: str, grad: Tensor | None) -> None:
        mask = self._masks.pruned(name)
        if mask is not None and grad is not None and name not in self.passing:
            self._zero_gradient(name, grad, mask)
            if _DISTRIBUTED and not self._awaits_reduction and torch.distributed.is_initialized():
                self._awaits_reduction = True
                after_reduction(self._mask_reduced)

    @torch.no_grad()
    def _mask_reduced(self) -> None:
        self._awaits_reduction = False
        for name in self._hooked:
            mask, grad = self._masks.pruned(name), self._masks.parameters[name].grad
            if mask is None or grad is None or name in self.passing or self._is_clean(name, grad, mask):
                continue
            self._zero_gradient(name, grad, mask)

    def _pruned(self, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Yield the pruned parameters that the optimizer holds now (groups may have been added), with their masks."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._masks.name_of.get(parameter)
                mask = None if name is None else self._masks.pruned(name)
                if name is not None and mask is not None:
                    self._hook_gradient(name, parameter)
                    yield name, parameter, mask

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._awaits_reduction = False  # of a backward pass that raised
        if self._applied != self._masks.changes:  # the masks were changed without apply()
            self.apply()
        told, pruned = False, list(self._pruned(optimizer))
        if self._loaded:
            told = self._tell_of_alive(any(self._is_alive(*each) for each in pruned))
            self.settle()
        for index, (name, parameter, mask) in enumerate(pruned):
            written = parameter._version != self._zeroed.get(name)
            # Writes through .data are not counted: one parameter after the other is read.
            due = written or (parameter.is_cpu and index == self.steps % len(pruned))
            if self._weights and due and self._is_alive(name, parameter, mask, whole=written):
                told = told or self._tell_of_alive()
                zero_(parameter.detach(), mask)  # decay would move a weight's slots
            elif self._weights and id(parameter) in LENT:
                zero_(parameter.detach(), mask)
            grad = parameter.grad
            if grad is not None and name not in self.passing and not self._is_clean(name, grad, mask):
                self._zero_gradient(name, grad, mask)

    def _is_alive(self, name: str, parameter: Tensor, mask: Tensor, whole: bool = True) -> bool:
        """Return whether pruned weights are not 0; on an accelerator and without ``whole`` a few are read."""
        if id(parameter) in LENT:
            return False
        if whole and parameter.is_cpu:
            return not is_masked(parameter, mask)
        return bool(local(parameter).detach().take(self._probed(name, mask)).any())

    def _tell_of_alive(self, alive: bool = True) -> bool:
        if alive and self._weights and self.on_alive is not None:
            self.on_alive()
        return alive

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.steps += 1
        for name, parameter, mask in self._pruned(optimizer):
            if self._weights and parameter.grad is None and self._is_untouched(name, parameter, mask):
                continue  # not stepped; a write would spoil a graph that is still to be used
            # Without masked weights, weight decay moves the slots of a weight that is not 0.
            slots = slots_to_repair(optimizer, parameter) if self._weights else None
            own: Tensor | None = mask
            if slots is None and self._weights and not is_known(optimizer):
                own = self._watch(optimizer, name, parameter, mask)
            if self._weights:
                stays_zero = self._stays_zero(optimizer, name, parameter, mask)
                if stays_zero:
                    self._unread.add(name)
                else:
                    zero_(parameter, mask)
                    self._unread.discard(name)
                if stays_zero is False:  # something wrote to the weight, and decay may have moved it into any slot
                    slots = None
                self._zeroed[name] = parameter._version
            if slots != () and own is not None:
                zero_slots_(optimizer, parameter, own, slots)

    def _stays_zero(self, optimizer: Optimizer, name: str, parameter: nn.Parameter, mask: Tensor) -> bool | None:
        """Return whether the optimizer has just left the pruned weights at 0, as some of them show; None: not known."""
        held = local(parameter)
        if not held.is_cpu or held.numel() <= _SMALL or not keeps_zero(optimizer, parameter):
            return None
        grad, positions = parameter.grad, self._probed(name, mask)
        if grad is None or name in self.passing or not len(positions) or not self._is_unwritten(name, local(grad)):
            return None
        return not bool(held.detach().take(positions).any())

    def _watch(self, optimizer: Optimizer, name: str, parameter: nn.Parameter, mask: Tensor) -> Tensor | None:
        """Return the mask for the slots of an optimizer that is not known; None or all True if they are left alone."""
        key = id(optimizer), name
        moved = local(parameter).detach().take(self._probed(name, mask)).nan_to_num(0, 0, 0).any()
        self._mixing[key] = moved | self._mixing[key] if key in self._mixing else moved
        if moved.device.type != "cpu":  # without waiting for the device
            return mask | self._mixing[key]
        if self._mixing[key]:
            zero_slots_(optimizer, parameter, mask, MOMENTUM)
            return None
        return mask

    def _has_loaded(self, optimizer: Optimizer) -> None:
        """Mask the slots before the next step and not now: their masks may be loaded after them."""
        self._loaded = True

    def _zero_gradient(self, name: str, grad: Tensor, mask: Tensor) -> None:
        grad = local(grad)
        zero_any_(grad, mask)
        if grad.device.type == "cpu" and grad.layout == torch.strided:  # no weak reference to the tensor, as above
            held = StorageWeakRef(grad.untyped_storage())  # type: ignore[no-untyped-call]
            self._clean[name] = (held, grad._version)

    def _is_clean(self, name: str, grad: Tensor, mask: Tensor) -> bool:
        """Return whether nothing has written to the gradient since it was masked; False if that is not known.

        A write through ``.data`` is not counted, so a few pruned entries are read as well. On an accelerator masking
        again costs less than reading the answer.
        """
        grad = local(grad)
        return self._is_unwritten(name, grad) and not grad.take(self._probed(name, mask)).any()

    def _is_unwritten(self, name: str, grad: Tensor) -> bool:
        seen, version = self._clean.get(name, (None, -1))
        return (
            seen is not None
            and version == grad._version
            and grad.device.type == "cpu"
            and grad.layout == torch.strided
            and seen.cdata == grad.untyped_storage()._cdata
        )

    def _probed(self, name: str, mask: Tensor) -> Tensor:
        """Return the positions of a few pruned entries."""
        if self._probes is None:
            self._probes = Probes()
        return self._probes(name, mask)

    def _is_untouched(self, name: str, parameter: Tensor, mask: Tensor) -> bool:
        """Return whether nothing has written to a weight since it was masked, as for gradients."""
        if self._zeroed.get(name) != parameter._version:
            return False
        return not local(parameter).detach().take(self._probed(name, mask)).any()


def claim(owner: Any, parameters: Mapping[str, nn.Parameter], shared: bool = False, check: bool = True) -> bool:
    """Record that an object masks the parameters, until :func:`release`; return True.

    Neither the parameters nor the owner are kept alive by the record.

    Args:
        owner: a handler.
        parameters: by name.
        shared: other objects may mask them too, so nothing is recorded.
        check: raise if another object masks one of them.

    Raises:
        ValueError: another object masks one of them; see :func:`check_free`.
    """
    if shared:
        return True
    masked = frozenset(map(id, parameters.values()))
    if check and any(other is not owner and masked & others for other, others in list(_OWNERS.items())):
        check_free(owner, parameters)
    _OWNERS[owner] = masked
    return True


def release(owner: Any) -> None:
    """Record that an object masks no parameters any longer."""
    _OWNERS.pop(owner, None)


def check_free(owner: Any, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise if an object other than ``owner`` masks one of the parameters.

    Raises:
        ValueError: names the parameter and both objects.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    if all(other is owner or names.keys().isdisjoint(masked) for other, masked in list(_OWNERS.items())):
        return
    gc.collect()  # a trainer and its handlers refer to each other: they live until then after their last name is gone
    for other, masked in list(_OWNERS.items()):
        for each in names if other is not owner else ():
            if each in masked:
                raise ValueError(
                    f"Parameter {names[each]!r} is masked by another handler, {type(other).__name__}, and this "
                    f"{type(owner).__name__} would fight it: detach() or finalize() that one first, or allow it with "
                    f"{type(owner).__name__}(..., shared=True)"
                )
