"""Evidence from attention heads: gradients of gates on their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ignite_prune._utils.state import checked_int, checked_mapping, checked_tensor
from ignite_prune.evidence.collectors.base import Collector, Scale, on_gradient
from ignite_prune.evidence.forward.attention_tracker import Attention
from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.evidence.running_sums import Forms, sum_dtype, zeros_over
from ignite_prune.saliency.needs import HeadGates


class HeadGateMeans(Collector[HeadGates]):
    """Collects :class:`~ignite_prune.saliency.needs.HeadGates`: a sum over samples, one number a head."""

    backward = True

    def prepare(self) -> None:
        self._seen = False

    def zeros(self, name: str) -> Tensor:
        return zeros_over(self.parameters[name], self.record.forms.get(name, (0,)))

    def subscribe(self, observer: ForwardObserver, scale: Scale) -> None:
        on_attention = partial(self.on_attention, scale)
        observer.subscribe(self.parameters, on_attention=on_attention, on_end=self.on_forward_end)

    def on_attention(self, scale: Scale, attention: Attention) -> None:
        """Called with the outputs of an attention's heads."""
        self._seen = True
        context = attention.context
        if context.requires_grad:
            # A copy: the next operation may overwrite it, and a hook that refers to its own tensor is never freed.
            held, at_once = replace(attention, context=context.detach().clone()), scale()
            on_gradient(context, at_once, lambda gradient: self._add(held, gradient, at_once))

    def _add(self, attention: Attention, gradient: Tensor, scale: float) -> None:
        context = attention.context
        wanted = sum_dtype(context)
        gates = (context.to(wanted) * gradient.to(wanted) / scale).sum((-2, -1))  # (samples, heads)
        # The gradient of a sample's own loss is `samples` times its part of the batch's mean.
        gates = gates * context.shape[0] if self.need.per_sample else gates.sum(0, keepdim=True)
        grouped = gates.view(gates.shape[0], attention.kv_heads, -1).sum(-1)
        found = {attention.output: gates, attention.query: gates, attention.packed: gates}
        found |= {attention.key: grouped, attention.value: grouped}
        for name, values in found.items():
            if name is not None and name in self.parameters:
                total = values.abs().sum(0).to(sum_dtype(self.parameters[name]))
                self.record.forms[name] = tuple(total.shape)
                running = self.running(name)
                if running.shape != total.shape:
                    raise ValueError(
                        f"The evidence of {name!r} is of {running.numel()} heads, but its attention has {total.numel()}"
                    )
                self.record.sums[name] = running + total
                self.record.count(name, values.shape[0])

    def checked_forms(self, state: Mapping[str, Any]) -> Forms:
        sums = checked_mapping("evidence 'sums'", state.get("sums"), self.parameters, whole=False)
        heads = {name: checked_tensor(f"evidence of {name!r}", held).numel() for name, held in sums.items()}
        return {
            name: (checked_int(f"number of heads of {name!r}", number, 1, max(1, *self.parameters[name].shape)),)
            for name, number in heads.items()
        }

    def reason(self, name: str) -> str:
        if not self._seen:
            return "no attention has been seen yet"
        return "no attention head reads or writes it, or no gradient reaches it; are the projections selected?"
