"""Evidence from activations, where the data really goes after a layer, and from attention heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ignite_prune.evidence.collectors.base import Gatherer, kept_of, wide
from ignite_prune.evidence.forward.attention_heads import Attention
from ignite_prune.saliency.needs import Activations, FollowingScale, HeadGates


def _when_differentiated(tensor: Tensor, tell: Callable[[Tensor], None]) -> None:
    """Tell the gradient of a tensor once a backward pass has it; the gradient itself goes on unchanged."""

    def hook(gradient: Tensor) -> None:
        tell(gradient.detach())

    tensor.register_hook(hook)  # type: ignore[no-untyped-call]


def overflowed(gradient: Tensor, scale: float) -> bool:
    """Whether a scaled loss was scaled too far: a GradScaler skips the step, and this is not to be counted."""
    return scale != 1.0 and not bool(torch.isfinite(gradient).all())


class ActivationMeans(Gatherer):
    """Gathers :class:`~ignite_prune.saliency.needs.Activations`: a sum over samples, one number a unit."""

    hears: ClassVar[frozenset[str]] = frozenset({"activations"})

    def __init__(self, need: Activations, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        self._need = need
        self._refused: dict[str, str] = {}

    @property
    def backward(self) -> bool:
        return self._need.gradient

    def empty(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        return torch.zeros(parameter.shape[0], dtype=wide(parameter), device=parameter.device)

    def activation(self, name: str, z: Tensor, dims: tuple[int, int], scale: float) -> None:
        dim = dims[1]
        if z.shape[dim] != self.parameters[name].shape[0]:
            self._refused[name] = "its dim 0 does not number its outputs"
        elif self._need.maps and dim != -3:
            self._refused[name] = "its outputs have no maps of two dimensions"
        elif not self._need.gradient:
            self._add(name, z.detach(), None, dims, 1.0)
        elif z.requires_grad:
            held = z.detach().clone()  # what comes next may write to it
            _when_differentiated(z, lambda gradient: self._add(name, held, gradient, dims, scale))
        else:
            self._refused[name] = "no gradient reaches its activation (is everything before it frozen?)"

    @torch.no_grad()
    def _add(self, name: str, z: Tensor, gradient: Tensor | None, dims: tuple[int, int], scale: float) -> None:
        if gradient is not None and overflowed(gradient, scale):
            return
        running, arranged = self.running(name), self._arranged(z, *dims)
        samples = len(arranged)
        if gradient is not None:  # of the sample's own loss, where the batch's is a mean
            gradient = self._arranged(gradient, *dims).to(running.dtype) * (samples / scale)
        running += self._need.measure(arranged.to(running.dtype), gradient).to(running.dtype).sum(0)
        self.count(name, samples)

    def _arranged(self, z: Tensor, samples: int, dim: int) -> Tensor:
        """Return ``(samples, units, positions)``, or with maps ``(samples, units, height, width)``."""
        if z.ndim == -dim:
            z = z.unsqueeze(0)
        z = z.movedim((samples, dim), (0, 1))
        if self._need.maps:
            return z
        return z.flatten(2) if z.ndim > 2 else z.unsqueeze(2)

    def _cut(self, name: str, total: Tensor, stay: Mapping[int, Tensor]) -> Tensor:
        return kept_of(total, {0: stay[0]} if 0 in stay else {})

    def answer(self, name: str, total: Tensor, count: float) -> Tensor:
        return total / count

    def reason(self, name: str) -> str:
        return self._refused.get(name) or super().reason(name)


class FollowingScales(Gatherer):
    """Gathers :class:`~ignite_prune.saliency.needs.FollowingScale`: which BatchNorm follows; the scale when asked."""

    hears: ClassVar[frozenset[str]] = frozenset({"activations"})
    shared = True

    def __init__(self, need: FollowingScale, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        self._norms: dict[str, Tensor] = {}
        self._seen: set[str] = set()

    @property
    def lasting(self) -> bool:
        return True

    def empty(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        return torch.zeros(parameter.shape[0], dtype=wide(parameter), device=parameter.device)

    def activation(self, name: str, z: Tensor, dims: tuple[int, int], scale: float) -> None:
        self._seen.add(name)

    def normed(self, norms: Mapping[str, Tensor]) -> None:
        """Take the scales that outputs went through, by the name of the layer before."""
        for name, scale in norms.items():
            if name in self.parameters and scale.shape == self.parameters[name].shape[:1]:
                self._norms[name] = scale
                self.running(name)
                self.counts[name] = 1.0

    def _cut(self, name: str, total: Tensor, stay: Mapping[int, Tensor]) -> Tensor:
        return kept_of(total, {0: stay[0]} if 0 in stay else {})

    def settled(self) -> None:
        for name, scale in self._norms.items():
            self.sums[name] = scale.detach().to(wide(scale), copy=True)

    def state_dict(self) -> dict[str, Any]:
        self.settled()
        return super().state_dict()

    def reason(self, name: str) -> str:
        return "no BatchNorm follows it" if name in self._seen else super().reason(name)


class HeadGateMeans(Gatherer):
    """Gathers :class:`~ignite_prune.saliency.needs.HeadGates`: a sum over samples, one number a head."""

    hears: ClassVar[frozenset[str]] = frozenset({"heads"})

    def __init__(self, need: HeadGates, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        self._per_sample = need.per_sample
        self._seen = False

    @property
    def backward(self) -> bool:
        return True

    def empty(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        return torch.zeros(self.forms.get(name, (0,)), dtype=wide(parameter), device=parameter.device)

    def heads(self, attention: Attention, scale: float) -> None:
        self._seen = True
        context = attention.context
        if not context.requires_grad:
            return
        held = context.detach().clone()  # what comes next may write to it
        _when_differentiated(context, lambda gradient: self._add(attention, held, gradient, scale))

    @torch.no_grad()
    def _add(self, attention: Attention, context: Tensor, gradient: Tensor, scale: float) -> None:
        if overflowed(gradient, scale):
            return
        samples = context.shape[0]
        wanted = wide(context)
        gates = (context.to(wanted) * gradient.to(wanted) / scale).sum((-2, -1))  # (samples, heads)
        if not self._per_sample:
            gates = gates.sum(0, keepdim=True)
        else:
            gates = gates * samples  # of the sample's own loss, where the batch's is a mean
        grouped = gates.view(gates.shape[0], attention.kv_heads, -1).sum(-1)
        found = {attention.output: gates, attention.query: gates, attention.packed: gates}
        found |= {attention.key: grouped, attention.value: grouped}
        for name, values in found.items():
            if name is not None and name in self.parameters:
                self._add_to(name, values)

    def _add_to(self, name: str, values: Tensor) -> None:
        self.fresh()
        total = values.abs().sum(0).to(wide(self.parameters[name]))
        held = self.sums.get(name)
        self.sums[name] = total if held is None else held.to(total.device) + total
        self.forms[name] = tuple(total.shape)
        self.count(name, values.shape[0])

    def answer(self, name: str, total: Tensor, count: float) -> Tensor:
        return total / count

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
