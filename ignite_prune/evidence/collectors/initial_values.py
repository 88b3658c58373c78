"""Evidence from construction: copies of the parameters' values."""

from __future__ import annotations

import torch
from torch import Tensor

from ignite_prune._utils.shard import local
from ignite_prune.evidence.collectors.base import Collector
from ignite_prune.saliency.needs import Initial


class InitialValues(Collector[Initial]):
    """Collects :class:`~ignite_prune.saliency.needs.Initial`: copies of the parameters, made at construction."""

    shared = True
    by_part = True
    initial = True
    lasting = True
    unseen = "in one shot nothing is known of the start; give it: Change(initial=state_dict)"

    def prepare(self) -> None:
        self.record.sums = {name: local(parameter).detach().clone() for name, parameter in self.parameters.items()}
        self.record.counts = dict.fromkeys(self.parameters, 1.0)

    def zeros(self, name: str) -> Tensor:
        return torch.zeros_like(local(self.parameters[name]), requires_grad=False)

    def result(self, name: str, total: Tensor, count: float) -> Tensor:
        return total
