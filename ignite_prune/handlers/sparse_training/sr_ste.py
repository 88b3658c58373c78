"""SRSTE: N:M masks of dense weights that go on training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune._utils.arguments import check_is, check_positive
from ignite_prune._utils.bits import pieces_of
from ignite_prune._utils.commit import to_the_end
from ignite_prune._utils.state import checked_int, checked_mapping
from ignite_prune.allocation import Uniform
from ignite_prune.core.selection import inputs_first
from ignite_prune.core.step_hooks import grad_scale
from ignite_prune.handlers.attachment import AnyEvent
from ignite_prune.handlers.sparse_training.base import MaskedHandler
from ignite_prune.handlers.sparse_training.before_step import BeforeStep
from ignite_prune.handlers.sparse_training.masked_forward import MaskedForward
from ignite_prune.pattern import NofM
from ignite_prune.update.agreement import NOT_MADE, announced


class SRSTE(MaskedHandler):
    r"""Sparse-refined straight-through estimation: N:M masks follow dense weights, which train on.

    The forward pass computes with the largest N of every M weights, the gradient goes straight through to all of them,
    and masked weights are pulled towards 0: :math:`g + \lambda\,(1 - m) \odot w`. Weights in storage are dense;
    :meth:`finalize` applies the masks to them.

    ``engine.state.flip_rate`` is the fraction of the masks' entries that the iteration's step has changed,
    ``{"global": float, "<parameter>": float}``; ``engine.state.metrics["flip_rate"]`` is the global one. If it does not
    fall during training, a larger strength helps.

    Args:
        model: bare, DDP-wrapped or compiled; masked weights take the parameters' places during forwards alone, so code
            that reads a layer's weight outside any module's forward computes densely.
        optimizer: the optimizer(s) that train it; any but LBFGS.
        params: as of :class:`~ignite_prune.PruneHandler`, recurrent layers excepted.
        pattern: how many of how many are kept.
        strength: λ, at least 0; 0 is the plain straight-through estimator.
        exclude: rules for what to leave alone; a layer that the pattern does not fit is refused by name.
        shared: let other handlers mask the same parameters; otherwise a second one is refused.

    Raises:
        TypeError, ValueError: a bad argument; the model is unchanged then.

    Example:
        >>> from ignite.engine import create_supervised_trainer
        >>> model = nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
        >>> pruner = SRSTE(model, optimizer, pattern=NofM(keep=1, of=4))
        >>> pruner.attach(trainer)
        >>> _ = trainer.run([(torch.randn(2, 8), torch.randn(2, 4))] * 4)
        >>> pruner.sparsity, 0 <= trainer.state.flip_rate["global"] < 1
        (0.75, True)

    References:
        Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", 2021, arXiv 2102.04010;
        Hu, Zhao, Huang, Chen, Zhu, "Accelerating transformer pre-training with 2:4 sparsity", 2024, arXiv 2404.01847
        (the flip rate).
    """

    KEYS = (*MaskedHandler.KEYS, "flips")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        params: Any = None,
        *,
        pattern: NofM = NofM(keep=2, of=4),
        strength: float = 2e-4,
        exclude: Any = (),
        shared: bool = False,
    ) -> None:
        with announced(NOT_MADE):
            check_is("pattern", pattern, NofM)
            if not isinstance(strength, int | float) or strength != 0:
                check_positive("strength", strength)
            super().__init__(model, optimizer, params, None, Uniform(), exclude, shared, pattern)
            self._pattern, self._strength = pattern, float(strength)
            self._inputs_first = inputs_first(self._model)
            self._masked_forward = MaskedForward(model, self._masks)
            self._hooks = BeforeStep(self._optimizers, self._hold_back)
            self._flips = dict.fromkeys(self._masks.parameters, 0)
            self._masks.update(self._agreed(self._chosen))
        self._hold()

    @property
    def flip_rate(self) -> dict[str, float]:
        """The fraction of the masks' entries that the last update changed, ``"global"`` and by parameter."""
        rates = {name: flips / self._masks.parameters[name].numel() for name, flips in self._flips.items()}
        return {"global": sum(self._flips.values()) / self._masks.numel, **rates}

    def _event(self) -> AnyEvent:
        return Events.ITERATION_COMPLETED

    def _update(self, step: int, done: Callable[[], None]) -> None:
        replaced = self._masks.replaced(self._agreed(self._chosen))

        def commit() -> None:
            self._masks.put(replaced)
            self._flips = dict(self._masks.flips)
            done()

        to_the_end(commit)

    def _chosen(self) -> dict[str, Tensor]:
        masks = {}
        for name in self._masks.parameters:
            scores = self._magnitudes(name)
            pattern = self._pattern.inputs_first(scores.dim()) if name in self._inputs_first else self._pattern
            pattern.count(scores.shape)  # raises if the pattern does not fit
            units = pattern.alive(torch.empty(scores.shape, dtype=torch.bool, device="meta")).shape
            none = torch.zeros(units, dtype=torch.bool, device=scores.device)
            masks[name] = pattern.spread(none, scores, None)
        return masks

    def _publish(self) -> None:
        super()._publish()
        if self._attachment is not None:
            state = self._attachment.engine.state
            setattr(state, "flip_rate", self.flip_rate)  # noqa: B010 (mypy knows Ignite's own attributes alone)
            state.metrics["flip_rate"] = self.flip_rate["global"]

    # Hooks

    def _install(self) -> None:
        self._masked_forward.install()
        self._hooks.install()

    def _stop(self) -> None:
        self._hooks.remove()
        self._masked_forward.remove()

    @torch.no_grad()
    def _hold_back(self, optimizer: Optimizer) -> None:
        scale, held = grad_scale(optimizer), self._mine(optimizer)
        self._masked_forward.check([name for name, parameter in held if parameter.grad is not None])
        for name, parameter in held:
            mask = self._masks.pruned(name)
            if mask is not None and parameter.grad is not None and scale is not None:
                for weight, kept, grad in pieces_of(parameter.detach(), mask, parameter.grad):
                    pull = weight * ~kept
                    grad.add_(pull * scale if isinstance(scale, Tensor) else pull, alpha=self._strength)

    # Checkpoints

    def _describe(self) -> list[str]:
        return [*super()._describe(), repr(self._pattern), f"strength {self._strength:g}"]

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "flips": dict(self._flips)}

    def _checked(self, state: Mapping[str, Any]) -> Callable[[], None]:
        load_masks = super()._checked(state)
        flips = {
            name: checked_int(f"flips of {name!r}", each, 0, self._masks.parameters[name].numel())
            for name, each in checked_mapping("flips", state["flips"], self._masks).items()
        }

        def load() -> None:
            self._flips = {name: flips[name] for name in self._masks}
            load_masks()

        return load
