"""Evidence from activations, and from the scales of the batch norms that follow: one number a unit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ignite_prune._utils.kept import Kept, kept_of
from ignite_prune.core.selection import inputs_first
from ignite_prune.evidence.collectors.base import Collector, N, Scale, on_gradient
from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.evidence.running_sums import sum_dtype, zeros_over
from ignite_prune.saliency.needs import Activations, FollowingScale


class ActivationCollector(Collector[N]):
    """Base of collectors of one number a unit."""

    def prepare(self) -> None:
        inputs_first_of = inputs_first(self.model)
        self.outputs = {name: int(name in inputs_first_of) for name in self.parameters}  # the dim of each weight

    def zeros(self, name: str) -> Tensor:
        dim = self.outputs[name]
        return zeros_over(self.parameters[name], self.parameters[name].shape[dim : dim + 1])

    def cut(self, name: str, total: Tensor, kept: Kept) -> Tensor:
        dim = self.outputs[name]
        return kept_of(total, {0: kept[dim]} if dim in kept else {})

    def subscribe(self, observer: ForwardObserver, scale: Scale) -> None:
        on_activation = partial(self.on_activation, scale)
        observer.subscribe(self.parameters, on_activation=on_activation, on_end=self.on_forward_end)

    def on_activation(self, scale: Scale, name: str, z: Tensor, dim: int, samples: int) -> None:
        """Called with the activation at a layer's evaluation point."""


class ActivationMeans(ActivationCollector[Activations]):
    """Collects :class:`~ignite_prune.saliency.needs.Activations`: sums over samples, whose means are the evidence."""

    def prepare(self) -> None:
        super().prepare()
        self.backward = self.need.gradient

    def on_activation(self, scale: Scale, name: str, z: Tensor, dim: int, samples: int) -> None:
        if z.shape[dim] != self.parameters[name].shape[self.outputs[name]]:
            self.refused[name] = f"its dim {self.outputs[name]} does not number its outputs"
        elif self.need.maps and dim != -3:
            self.refused[name] = "its outputs have no maps of two dimensions"
        elif not self.need.gradient:
            self._add(name, z.detach(), (samples, dim))
        elif z.requires_grad:
            held, at_once = z.detach().clone(), scale()  # the next operation may overwrite it
            on_gradient(z, at_once, partial(self._add, name, held, (samples, dim), at_once))
        else:
            self.refused[name] = "no gradient reaches its activation (is everything before it frozen?)"

    @torch.no_grad()
    def _add(
        self, name: str, z: Tensor, dims: tuple[int, int], scale: float = 1.0, gradient: Tensor | None = None
    ) -> None:
        running, arranged = self.running(name), self._arranged(z, *dims)
        samples = len(arranged)
        if gradient is not None:  # of each sample's own loss, where the batch's is a mean
            gradient = self._arranged(gradient, *dims).to(running.dtype) * (samples / scale)
        running += self.need.measure(arranged.to(running.dtype), gradient).to(running.dtype).sum(0)
        self.record.count(name, samples)

    def _arranged(self, z: Tensor, samples: int, dim: int) -> Tensor:
        """Return ``(samples, units, positions)``, or with maps ``(samples, units, height, width)``."""
        z = (z.unsqueeze(0) if z.ndim == -dim else z).movedim((samples, dim), (0, 1))
        return z if self.need.maps else z.flatten(2) if z.ndim > 2 else z.unsqueeze(2)


class FollowingScales(ActivationCollector[FollowingScale]):
    """Collects :class:`~ignite_prune.saliency.needs.FollowingScale`: the scale of the BatchNorm after each layer.

    The forward pass shows which BatchNorm follows; its scale is copied when the record is read.
    """

    shared = True
    lasting = True

    def prepare(self) -> None:
        super().prepare()
        self._norms: dict[str, Tensor] = {}

    def on_activation(self, scale: Scale, name: str, z: Tensor, dim: int, samples: int) -> None:
        self.refused.setdefault(name, _NO_NORM)

    def on_forward_end(self, observer: ForwardObserver) -> None:
        super().on_forward_end(observer)
        norms = {} if observer.points is None else observer.points.norms
        for name, scale in norms.items():
            if name not in self.parameters:
                continue
            if len(scale) != self.parameters[name].shape[self.outputs[name]]:
                self.refused[name] = f"its dim {self.outputs[name]} does not number its outputs, as it works in groups"
            else:
                self._norms[name] = scale
                self.running(name)
                self.record.counts[name] = 1.0

    def settle(self) -> None:
        for name, scale in self._norms.items():
            self.record.sums[name] = scale.detach().to(sum_dtype(scale), copy=True)

    def state_dict(self, sums: bool = True) -> dict[str, Any]:
        self.settle()
        return super().state_dict(sums)

    def load_extras(self, state: Mapping[str, Any]) -> None:
        if state["counts"]:  # which layers no BatchNorm follows is known already
            self.refused |= {name: _NO_NORM for name in self.parameters if name not in state["counts"]}


_NO_NORM = "no BatchNorm follows it"
