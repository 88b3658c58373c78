"""Evidence that needs no watching: values at the start."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ignite_prune.evidence.collectors.base import Gatherer
from ignite_prune.saliency.needs import Initial


class InitialValues(Gatherer):
    """Gathers :class:`~ignite_prune.saliency.needs.Initial`: a copy, once, when it is made."""

    shared = True

    def __init__(self, need: Initial, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        for name, parameter in self.parameters.items():
            self.sums[name] = parameter.detach().clone()
            self.counts[name] = 1.0

    @property
    def lasting(self) -> bool:
        return True

    def reason(self, name: str) -> str:
        return "in one shot nothing is known of the start; give it: Change(initial=state_dict)"

    def empty(self, name: str) -> Tensor:
        return torch.zeros_like(self.parameters[name], requires_grad=False)
