"""Evidence from attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ignite_prune.evidence.collectors.backward_hook import on_gradient
from ignite_prune.evidence.collectors.base import Collector
from ignite_prune.evidence.forward.attention_tracker import Attention
from ignite_prune.evidence.running_sums import wide
from ignite_prune.saliency.needs import HeadGates


class HeadGateMeans(Collector):
    """Collects :class:`~ignite_prune.saliency.needs.HeadGates`: a sum over samples, one number a head."""

    listens_to: ClassVar[frozenset[str]] = frozenset({"attention"})
    backward = True

    def __init__(self, need: HeadGates, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        self._per_sample = need.per_sample
        self._seen = False

    def zeros(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        return torch.zeros(self.record.forms.get(name, (0,)), dtype=wide(parameter), device=parameter.device)

    def on_attention(self, attention: Attention, scale: float) -> None:
        self._seen = True
        context = attention.context
        if context.requires_grad:
            held = context.detach().clone()  # the next operation may overwrite it
            on_gradient(context, scale, lambda gradient: self._add(attention, held, gradient, scale))

    def _add(self, attention: Attention, context: Tensor, gradient: Tensor, scale: float) -> None:
        wanted = wide(context)
        gates = (context.to(wanted) * gradient.to(wanted) / scale).sum((-2, -1))  # (samples, heads)
        # The gradient of a sample's own loss is `samples` times its part of the batch's mean.
        gates = gates * context.shape[0] if self._per_sample else gates.sum(0, keepdim=True)
        grouped = gates.view(gates.shape[0], attention.kv_heads, -1).sum(-1)
        found = {attention.output: gates, attention.query: gates, attention.packed: gates}
        found |= {attention.key: grouped, attention.value: grouped}
        for name, values in found.items():
            if name is not None and name in self.parameters:
                self._add_to(name, values)

    def _add_to(self, name: str, values: Tensor) -> None:
        self.record.drop_stale()
        total = values.abs().sum(0).to(wide(self.parameters[name]))
        held = self.record.sums.get(name)
        self.record.sums[name] = total if held is None else held.to(total.device) + total
        self.record.forms[name] = tuple(total.shape)
        self.record.count(name, values.shape[0])

    def reason(self, name: str) -> str:
        if not self._seen:
            return "no attention has been seen yet"
        return "no attention head reads or writes it, or no gradient reaches it; are the projections selected?"

    def checked(self, state: Any) -> dict[str, Any]:
        if not isinstance(state, Mapping) or not isinstance(state.get("sums"), Mapping):
            raise TypeError("The evidence of a pruner's state_dict should be mappings 'sums' and 'counts'")
        if not set(state["sums"]) == set(state.get("counts", {})) <= set(self.parameters):
            raise ValueError("The checkpoint's evidence is of other parameters")
        return dict(state)
