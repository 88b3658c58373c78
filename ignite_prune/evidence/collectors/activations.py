"""Evidence from activations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ignite_prune.evidence.collectors.backward_hook import on_gradient
from ignite_prune.evidence.collectors.base import Collector
from ignite_prune.evidence.running_sums import Kept, kept_of, wide
from ignite_prune.saliency.needs import Activations


class ActivationCollector(Collector):
    """Base of collectors of one number a unit."""

    listens_to: ClassVar[frozenset[str]] = frozenset({"activation"})

    def zeros(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        return torch.zeros(parameter.shape[0], dtype=wide(parameter), device=parameter.device)

    def cut(self, name: str, total: Tensor, kept: Kept) -> Tensor:
        return kept_of(total, {0: kept[0]} if 0 in kept else {})


class ActivationMeans(ActivationCollector):
    """Collects :class:`~ignite_prune.saliency.needs.Activations`: a sum over samples, one number a unit."""

    def __init__(self, need: Activations, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        self._need, self.backward = need, need.gradient

    def on_activation(self, name: str, z: Tensor, dims: tuple[int, int], scale: float) -> None:
        if z.shape[dims[1]] != self.parameters[name].shape[0]:
            self.refused[name] = "its dim 0 does not number its outputs"
        elif self._need.maps and dims[1] != -3:
            self.refused[name] = "its outputs have no maps of two dimensions"
        elif not self._need.gradient:
            self._add(name, z.detach(), dims)
        elif z.requires_grad:
            held = z.detach().clone()  # the next operation may overwrite it
            on_gradient(z, scale, partial(self._add, name, held, dims, scale))
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
        running += self._need.measure(arranged.to(running.dtype), gradient).to(running.dtype).sum(0)
        self.record.count(name, samples)

    def _arranged(self, z: Tensor, samples: int, dim: int) -> Tensor:
        """Return ``(samples, units, positions)``, or with maps ``(samples, units, height, width)``."""
        if z.ndim == -dim:
            z = z.unsqueeze(0)
        z = z.movedim((samples, dim), (0, 1))
        if self._need.maps:
            return z
        return z.flatten(2) if z.ndim > 2 else z.unsqueeze(2)
