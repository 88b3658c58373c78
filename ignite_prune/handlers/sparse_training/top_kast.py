"""TopKAST: sparse forward, a little less sparse backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ignite_prune._utils.arguments import check_positive
from ignite_prune._utils.bits import masked_copy_, pieces_of, put_back_, unmasked_copy, zero_
from ignite_prune._utils.commit import to_the_end
from ignite_prune._utils.sparsity import as_sparsity
from ignite_prune.allocation import ERK, Allocation
from ignite_prune.core.mask_enforcer import MaskEnforcer
from ignite_prune.core.mask_store import MaskStore
from ignite_prune.core.moments import keeps_weight
from ignite_prune.core.step_hooks import grad_scale
from ignite_prune.handlers.attachment import AnyEvent
from ignite_prune.handlers.sparse_training.base import MaskedHandler
from ignite_prune.handlers.sparse_training.before_step import BeforeStep
from ignite_prune.handlers.sparse_training.initial_masks import checked_sparsity, start
from ignite_prune.handlers.sparse_training.masked_forward import MaskedForward
from ignite_prune.update.agreement import NOT_MADE, announced
from ignite_prune.update.param_group import ParamGroup


class TopKAST(MaskedHandler):
    r"""Top-K always sparse training: forward with the largest weights, gradients for a few more.

    The forward pass computes with :math:`A = TopK(|\theta|, D)`, gradients go to :math:`B = TopK(|\theta|, D + M)`;
    weights of neither stay as they are, so that they may come back. The penalty :math:`\lambda/2\,\theta^2` on A, and
    :math:`\lambda/(2D)\,\theta^2` on B without A, holds back what is only explored; D is the layer's density. Weights
    in storage are dense: ``masks`` is A, and :meth:`finalize` applies it to them.

    Args:
        model: bare, DDP-wrapped or compiled; masked weights take the parameters' places during forwards alone, so code
            that reads a layer's weight outside any module's forward computes densely.
        optimizer: the optimizer(s) that train it; any but LBFGS.
        params: as of :class:`~ignite_prune.PruneHandler`, recurrent layers excepted.
        sparsity: 1 − D, in (0, 1).
        backward_sparsity: 1 − D − M, in [0, sparsity]; None: D + M is half again as large as D.
        allocation: how both are divided over the layers.
        every: iterations from one choice of A and B to the next.
        strength: λ, at least 0.
        exclude: rules for what to leave alone.
        shared: let other handlers mask the same parameters; otherwise a second one is refused.

    Raises:
        TypeError, ValueError: a bad argument; the model is unchanged then.

    Example:
        >>> from ignite.engine import create_supervised_trainer
        >>> model = nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> pruner = TopKAST(model, optimizer, sparsity=0.75, backward_sparsity=0.5, every=2)
        >>> pruner.attach(trainer)
        >>> _ = trainer.run([(torch.randn(2, 8), torch.randn(2, 4))] * 4)
        >>> pruner.masks.kept("weight"), pruner.explored.kept("weight"), int(model.weight.count_nonzero())
        (8, 16, 32)

    References:
        Jayakumar, Pascanu, Rae, Osindero, Elsen, "Top-KAST: top-K always sparse training", 2020, arXiv 2106.03517.
    """

    KEYS = (*MaskedHandler.KEYS, "explored")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        params: Any = None,
        *,
        sparsity: float | None = None,
        backward_sparsity: float | None = None,
        allocation: Allocation = ERK(),
        every: int = 100,
        strength: float = 1e-4,
        exclude: Any = (),
        shared: bool = False,
    ) -> None:
        with announced(NOT_MADE):
            super().__init__(model, optimizer, params, sparsity, allocation, exclude, shared)
            check_positive("every", every, whole=True)
            if not isinstance(strength, int | float) or strength != 0:
                check_positive("strength", strength)
            for group in self._groups:
                if backward_sparsity is not None and as_sparsity(backward_sparsity) > checked_sparsity(group):
                    raise ValueError(
                        f"Argument backward_sparsity should be at most the sparsity, {group['sparsity']}, but given "
                        f"{backward_sparsity!r}"
                    )
            self._backward, self._every, self._strength = backward_sparsity, every, float(strength)
            self._explored = MaskStore(self._masks.parameters)
            self._enforcer = MaskEnforcer(self._explored, self._optimizers, weights=False)
            self._masked_forward = MaskedForward(model, self._masks)
            self._hooks = BeforeStep(self._optimizers, self._hold_back)
            self._handles: list[RemovableHandle] = []
            self._unused: dict[str, tuple[Tensor, Tensor]] = {}  # during a step: weights that it must not change
            self._shares: dict[str, Tensor] = {}
            self._chosen()()
        self._hold()

    @property
    def explored(self) -> MaskStore:
        """B: the masks of what gets gradients; ``masks`` is a part of them."""
        return self._explored

    # Updating

    def _event(self) -> AnyEvent:
        return Events.ITERATION_COMPLETED(every=self._every)

    def _update(self, step: int, done: Callable[[], None]) -> None:
        put = self._chosen()

        def commit() -> None:
            put()
            self._enforcer.apply()
            done()

        to_the_end(commit)

    def _chosen(self) -> Callable[[], None]:
        """Return a function that changes the masks to those of the present weights; it may be repeated."""
        forward = self._agreed(lambda: self._top(checked_sparsity))
        backward = self._agreed(lambda: self._top(self._backward_sparsity), self._explored)
        # An allocation that is no longer monotone might leave an active weight out.
        explored = self._explored.replaced({name: mask | forward[name] for name, mask in backward.items()})
        masks = self._masks.replaced(forward)

        def put() -> None:
            self._masks.put(masks)
            self._explored.put(explored)
            self._shares.clear()

        return put

    def _backward_sparsity(self, group: ParamGroup) -> float:
        sparsity = checked_sparsity(group)
        return max(0.0, 1 - 1.5 * (1 - sparsity)) if self._backward is None else float(self._backward)

    def _top(self, sparsity: Callable[[ParamGroup], float]) -> dict[str, Tensor]:
        for name in self._masks.parameters:
            self._magnitudes(name)
        chosen = start(self._groups, self._masks.parameters, torch.abs, sparsity)
        full = {
            name: torch.ones_like(p, dtype=torch.bool)
            for name, p in self._masks.parameters.items()
            if name not in chosen
        }
        return chosen | full

    # Hooks

    def _install(self) -> None:
        self._enforcer.install()
        self._enforcer.settle()
        self._masked_forward.install()
        self._hooks.install()
        if not self._handles:
            for optimizer in self._optimizers:
                self._handles += [
                    optimizer.register_step_pre_hook(self._before_step),
                    optimizer.register_step_post_hook(self._after_step),
                ]

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._unused.clear()
        self._shares.clear()
        self._hooks.remove()
        self._masked_forward.remove()
        self._enforcer.remove()

    @torch.no_grad()
    def _hold_back(self, optimizer: Optimizer) -> None:
        scale, held = grad_scale(optimizer), self._mine(optimizer)
        self._masked_forward.check([name for name, parameter in held if parameter.grad is not None])
        for name, parameter in held:
            if parameter.grad is not None and self._strength and scale is not None:
                self._add_penalty(name, parameter, parameter.grad, scale)

    def _add_penalty(self, name: str, parameter: Tensor, grad: Tensor, scale: float | Tensor) -> None:
        """Add the gradient of the penalty to that of a parameter, in pieces that stay in the cache."""
        share, explored = self._share(name, parameter), self._explored.pruned(name)
        for weight, kept, each, part in pieces_of(parameter.detach(), explored, share, grad):
            penalty = each * weight
            if kept is not None:
                zero_(penalty, kept)  # where the weight is infinite, 0 times it is NaN
            part.add_(penalty * scale if isinstance(scale, Tensor) else penalty)

    def _share(self, name: str, parameter: Tensor) -> Tensor:
        """Return what the penalty multiplies each weight by; it changes with the masks."""
        if name not in self._shares:
            density = self._masks.kept(name) / parameter.numel()
            one = torch.ones((), dtype=parameter.dtype, device=parameter.device)
            active, explored = self._strength * one, self._strength * (one / max(density, 1e-12))
            share = torch.where(self._masks[name], active, explored)
            self._shares[name] = masked_copy_(torch.empty_like(parameter), share, self._explored[name])
        return self._shares[name]

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Store the unexplored weights where the step (weight decay) would move them."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._masks.name_of.get(parameter)
                explored = None if name is None else self._explored.pruned(name)
                if name is not None and explored is not None and not keeps_weight(optimizer, group, parameter):
                    self._unused[name] = unmasked_copy(parameter.detach(), explored), explored

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for name, parameter in self._mine(optimizer) if self._unused else ():
            if name in self._unused:
                put_back_(parameter, *self._unused.pop(name))

    # Checkpoints

    def _describe(self) -> list[str]:
        return [*super()._describe(), f"explored sparsity {self._explored.sparsity:.4g}", f"every {self._every}"]

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "explored": self._explored.state_dict()}

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        load_masks = super()._checked(state)
        explored = self._explored.replaced(self._explored.unpacked(state["explored"]))

        def load() -> None:
            self._explored.put(explored)
            self._shares.clear()
            load_masks()

        return load
