"""Evidence at construction: the parameters' values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ignite_prune.evidence.collectors.base import Collector
from ignite_prune.saliency.needs import Initial


class InitialValues(Collector):
    """Collects :class:`~ignite_prune.saliency.needs.Initial`: copies of the parameters, made at construction."""

    shared = True
    initial = True
    lasting = True

    def __init__(self, need: Initial, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        for name, parameter in self.parameters.items():
            self.record.sums[name] = parameter.detach().clone()
            self.record.counts[name] = 1.0

    def zeros(self, name: str) -> Tensor:
        return torch.zeros_like(self.parameters[name], requires_grad=False)

    def result(self, name: str, total: Tensor, count: float) -> Tensor:
        return total

    def reason(self, name: str) -> str:
        return "in one shot nothing is known of the start; give it: Change(initial=state_dict)"
