"""Base class of the lassos: units' norms are penalised around optimizers' steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ignite_prune.core.step_hooks import Closure, grad_scale
from ignite_prune.handlers.regularisers.base import Regulariser
from ignite_prune.handlers.regularisers.param_groups import RegulariserGroup
from ignite_prune.regularise.lasso import add_gradients_, penalty, shrink_
from ignite_prune.regularise.units import WeightUnits


class Lasso(Regulariser):
    """A regulariser that is a sum of units' norms, in proximal or gradient form.

    Args:
        model: unwrapped.
        optimizer: as the public classes take it.
        groups: with ``"strength"`` and ``"by_size"``.
        units: of each group.
        proximal: the proximal form, or else the gradient form.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        groups: list[RegulariserGroup],
        units: Sequence[Sequence[WeightUnits]],
        proximal: bool,
    ) -> None:
        if not isinstance(proximal, bool):
            raise TypeError(f"Argument proximal should be a bool, but given {proximal!r}")
        self._units, self._proximal = units, proximal
        names = dict.fromkeys(name for several in units for each in several for name in each.names)
        super().__init__(model, optimizer, groups, names)

    def penalty(self) -> float:
        r"""Return :math:`\alpha \sum_b \|W_b\|_2` of the present weights."""
        return float(self._penalty())

    def _penalty(self) -> Tensor:
        weights = self._weights()
        return torch.stack(
            [
                group["strength"] * penalty(each, weights, group["by_size"]).cpu()
                for group, units in zip(self._groups, self._units)
                for each in units
            ]
        ).sum()

    def _report(self) -> dict[str, float]:
        weights = self._weights()
        norms = torch.cat([each.norms(weights).flatten().cpu() for units in self._units for each in units])
        return {"penalty": self.penalty(), "zero": float((norms == 0).double().mean())}

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def _before_step(self, optimizer: Optimizer, closure: Closure | None) -> Closure | None:
        if self._proximal:
            return closure
        if closure is None:
            self._add(optimizer)
            return None

        def with_penalty() -> Any:
            loss = closure()
            self._add(optimizer)
            return loss + self._penalty().to(loss)  # a line search needs the loss that the gradients are of

        return with_penalty

    @torch.no_grad()
    def _add(self, optimizer: Optimizer) -> None:
        held, weights, scale = self._held(optimizer), self._weights(), grad_scale(optimizer)
        if scale is None:  # the step will be skipped
            return
        gradients = {name: self._gradient(name) for name in held}
        for group, units in zip(self._groups, self._units):
            strength = group["strength"] * scale
            for each in units if group["strength"] else ():
                strengths = {n: -strength if held[n].get("maximize") else strength for n in each.names if n in held}
                add_gradients_(
                    each, weights, {name: gradients[name] for name in strengths}, strengths, group["by_size"]
                )

    def _gradient(self, name: str) -> Tensor:
        gradient = self._parameters[name].grad
        assert gradient is not None
        if gradient.is_sparse:
            raise ValueError(f"The gradient of {name!r} is sparse, so the penalty's cannot be added; use proximal=True")
        return gradient

    def _after_step(self, optimizer: Optimizer, stepped: bool) -> None:
        if not self._proximal or not stepped:
            return
        held, weights = self._held(optimizer), self._weights()
        for group, units in zip(self._groups, self._units):
            for each in units if group["strength"] else ():
                thresholds = {name: _rate(held[name]) * group["strength"] for name in each.names if name in held}
                if thresholds:
                    shrink_(each, weights, thresholds, group["by_size"])


def _rate(group: dict[str, Any]) -> Any:
    if "lr" not in group:
        raise ValueError("The optimizer has no 'lr' in its groups, which the proximal form needs; use proximal=False")
    return group["lr"]
