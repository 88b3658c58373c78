"""Evidence for growing connections, from training: the dense gradients of a due step, or a momentum of all steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ignite_prune._utils.bits import zero_any_
from ignite_prune._utils.state import checked_int, checked_mapping, checked_tensor
from ignite_prune.core.mask_enforcer import MaskEnforcer
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.step_hooks import grad_scale
from ignite_prune.handlers.sparse_training.before_step import BeforeStep


class GradientListener(ABC):
    """Collects evidence at every optimizer step, when the gradients are ready (of a closure: when it has run).

    Args:
        masks: of the parameters to collect for.
        enforcer: leaves gradients unmasked where this listener needs them.
        optimizers: those that train the parameters.
    """

    def __init__(self, masks: MaskStore, enforcer: MaskEnforcer, optimizers: Sequence[Optimizer]) -> None:
        self._masks, self._enforcer = masks, enforcer
        self._optimizers = [each for each in optimizers if self._mine(each)]
        self._hooks = BeforeStep(self._optimizers, self._before_step)
        self.is_due: Callable[[], bool] = lambda: False

    def install(self) -> None:
        """Install the hooks, if they are not."""
        self._hooks.install()

    def remove(self) -> None:
        """Remove every hook."""
        self._hooks.remove()
        self._enforcer.passing.clear()

    def _before_step(self, optimizer: Optimizer) -> None:
        self._collect(optimizer, self.is_due())

    def _mask(self, name: str, grad: Tensor) -> None:
        mask = self._masks.pruned(name)
        if mask is not None:
            zero_any_(grad, mask)

    def _mine(self, optimizer: Optimizer) -> set[str]:
        """Return the names of the parameters that the optimizer has now and that are collected for."""
        held = (parameter for group in optimizer.param_groups for parameter in group["params"])
        return {self._masks.name_of[parameter] for parameter in held if parameter in self._masks.name_of}

    def _gradients(self, optimizer: Optimizer) -> Iterator[tuple[str, Tensor, Mapping[str, Any]]]:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self._masks.name_of and parameter.grad is not None:
                    yield self._masks.name_of[parameter], parameter.grad, group

    def expect(self) -> None:
        """Prepare for the next step, at which an update may be due."""

    @abstractmethod
    def _collect(self, optimizer: Optimizer, due: bool) -> None:
        """Collect from the gradients of a step; ``due`` is whether an update is due at it."""

    @property
    @abstractmethod
    def found(self) -> dict[str, Tensor] | None:
        """The evidence by name, or None if it is incomplete."""

    def used(self) -> None:
        """Drop the evidence: an update has used it."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the evidence so far, as plain data."""

    @abstractmethod
    def checked(self, state: Any) -> Any:
        """Return the argument of :meth:`load`, or raise ValueError and change nothing."""

    @abstractmethod
    def load(self, checked: Any) -> None:
        """Load a checked state."""

    def _tensors(self, state: Any) -> dict[str, Tensor]:
        parameters, found = self._masks.parameters, {}
        for name, value in checked_mapping("gradients", state, parameters, whole=False).items():
            tensor, parameter = checked_tensor(f"gradient of {name!r}", value), parameters[name]
            numbers = tensor.is_floating_point() or tensor.is_complex()
            dtype = parameter.dtype if not numbers or tensor.is_complex() != parameter.is_complex() else None
            checked_tensor(f"gradient of {name!r}", value, shape=parameter.shape, dtype=dtype)
            found[name] = tensor.to(parameter.device, copy=True)
        return found


class NoListener(GradientListener):
    """For growth that needs no evidence."""

    def _collect(self, optimizer: Optimizer, due: bool) -> None:
        pass

    @property
    def found(self) -> dict[str, Tensor] | None:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def checked(self, state: Any) -> Any:
        return self._tensors(state)

    def load(self, checked: Any) -> None:
        pass


class DueGradients(GradientListener):
    """The dense gradients of the step at which an update is due. That step is skipped: gradients are set to None.

    Gradients are left unmasked from :meth:`expect` until the step, so that accumulation, unscaling and reduction over
    ranks work on them as usual.
    """

    def __init__(self, masks: MaskStore, enforcer: MaskEnforcer, optimizers: Sequence[Optimizer]) -> None:
        super().__init__(masks, enforcer, optimizers)
        self._held: dict[str, Tensor] = {}
        self._caught: list[int] = []  # indices of the optimizers that have stepped since an update became due

    def expect(self) -> None:
        waiting = [each for index, each in enumerate(self._optimizers) if index not in self._caught]
        self._enforcer.passing = {name for each in waiting for name in self._mine(each)}

    def _collect(self, optimizer: Optimizer, due: bool) -> None:
        if not self._enforcer.passing:  # not due
            return
        mine = self._mine(optimizer)
        if not mine & self._enforcer.passing or grad_scale(optimizer) is None:  # collected already, or it overflowed
            return
        if not due:  # the step came sooner than the last one did
            for name, grad, _ in self._gradients(optimizer):
                self._mask(name, grad)
            return
        for name, grad, _ in self._gradients(optimizer):
            self._held[name] = _own(grad.detach())
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self._caught.append(self._optimizers.index(optimizer))
        self._enforcer.passing -= mine

    @property
    def found(self) -> dict[str, Tensor] | None:
        return self._held if len(self._caught) == len(self._optimizers) else None

    def used(self) -> None:
        self._held = {}
        self._caught = []

    def state_dict(self) -> dict[str, Any]:
        return {"gradients": _copies(self._held), "caught": list(self._caught)}

    def checked(self, state: Any) -> Any:
        caught = state.get("caught") if isinstance(state, Mapping) else None
        if not isinstance(caught, list) or len(caught) > len(self._optimizers):
            raise ValueError("The checkpoint's gradients are of other optimizers")
        for each in caught:
            checked_int("optimizer of gradients", each, 0, len(self._optimizers) - 1)
        return self._tensors(state.get("gradients")), list(caught)

    def load(self, checked: Any) -> None:
        self._held, self._caught = checked
        self._enforcer.passing.clear()


class DenseMomentum(GradientListener):
    """A momentum of dense gradients, as the optimizer's own would be of the active: m, or m / (√v + 1e-8).

    It is stored here, as the optimizer's slots of inactive entries are 0. Gradients are left unmasked until the step,
    and masked then.
    """

    def __init__(self, masks: MaskStore, enforcer: MaskEnforcer, optimizers: Sequence[Optimizer]) -> None:
        super().__init__(masks, enforcer, optimizers)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                if _betas(group) is None:
                    raise ValueError(
                        f"Argument optimizer: {type(optimizer).__name__} has no momentum; take one with betas, or "
                        "momentum= above 0"
                    )
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}

    def install(self) -> None:
        super().install()
        self._enforcer.passing = set(self._masks)

    @torch.no_grad()
    def _collect(self, optimizer: Optimizer, due: bool) -> None:
        scale = grad_scale(optimizer)
        for name, grad, group in self._gradients(optimizer):
            if scale is not None:
                dense = grad.to_dense() if grad.is_sparse else grad
                wide = torch.promote_types(grad.dtype, torch.float32)  # a half-precision average stops changing
                self._take(name, dense.to(wide) / scale, _betas(group))
            self._mask(name, grad)

    def _take(self, name: str, grad: Tensor, betas: tuple[float, float] | float | None) -> None:
        first = self._first.get(name)
        if isinstance(betas, tuple):
            first = torch.zeros_like(grad) if first is None else first
            self._first[name] = first.mul_(betas[0]).add_(grad, alpha=1 - betas[0])
            second = self._second.setdefault(name, torch.zeros_like(grad))
            second.mul_(betas[1]).addcmul_(grad, grad.conj(), value=1 - betas[1])
        elif betas is not None:
            self._first[name] = grad.clone() if first is None else first.mul_(betas).add_(grad)

    @property
    def found(self) -> dict[str, Tensor] | None:
        return {
            name: first / (self._second[name].abs().sqrt() + 1e-8) if name in self._second else first
            for name, first in self._first.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"first": _copies(self._first), "second": _copies(self._second)}

    def checked(self, state: Any) -> Any:
        if not isinstance(state, Mapping):
            raise ValueError("The checkpoint's momentum is damaged")
        return self._tensors(state.get("first")), self._tensors(state.get("second"))

    def load(self, checked: Any) -> None:
        self._first, self._second = checked


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _own(grad: Tensor) -> Tensor:
    """Return a dense gradient that the next backward pass does not write to, unlike a view of DDP's buckets."""
    if grad.is_sparse:
        return grad.to_dense()
    return grad.clone() if grad.untyped_storage().nbytes() > grad.nbytes else grad


def _betas(group: Mapping[str, Any]) -> tuple[float, float] | float | None:
    """Return Adam's two coefficients, the one of a plain momentum, or None where a group has neither."""
    betas = group.get("betas")
    if isinstance(betas, tuple | list):
        return float(betas[0]), float(betas[1])
    momentum = group.get("momentum")
    return float(momentum) if momentum else None
