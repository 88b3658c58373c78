"""Evidence from the scales of batch norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ignite_prune.evidence.collectors.activations import ActivationCollector
from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.evidence.running_sums import wide
from ignite_prune.saliency.needs import FollowingScale


class FollowingScales(ActivationCollector):
    """Collects :class:`~ignite_prune.saliency.needs.FollowingScale`: the scale of the BatchNorm after each layer.

    The forward pass shows which BatchNorm follows; its scale is copied when the record is read.
    """

    shared = True
    lasting = True

    def __init__(self, need: FollowingScale, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        self._norms: dict[str, Tensor] = {}
        self._seen: set[str] = set()

    def on_activation(self, name: str, z: Tensor, dims: tuple[int, int], scale: float) -> None:
        self._seen.add(name)

    def on_forward_end(self, observer: ForwardObserver) -> None:
        super().on_forward_end(observer)
        norms = {} if observer.points is None else observer.points.norms
        for name, scale in norms.items():
            if name in self.parameters and scale.shape == self.parameters[name].shape[:1]:
                self._norms[name] = scale
                self.running(name)
                self.record.counts[name] = 1.0

    def settle(self) -> None:
        for name, scale in self._norms.items():
            self.record.sums[name] = scale.detach().to(wide(scale), copy=True)

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return super().state_dict()

    def reason(self, name: str) -> str:
        return "no BatchNorm follows it" if name in self._seen else super().reason(name)
