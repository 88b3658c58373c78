"""Evidence for synaptic flow: the shapes of the model's input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ignite_prune._utils.nested import mapped, tensors_in
from ignite_prune._utils.state import checked_int, checked_mapping
from ignite_prune.core.undisturbed import undisturbed
from ignite_prune.evidence.collectors.base import Collector, Scale
from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.saliency.needs import SynapticFlow


class InputShapes(Collector[SynapticFlow]):
    """Collects :class:`~ignite_prune.saliency.needs.SynapticFlow`: the shapes of one input, which are its state.

    The flow is a pure function of weights, masks and shapes, computed in :meth:`results`.
    """

    replicated = True
    lasting = True
    goes_on = True

    def prepare(self) -> None:
        self.shapes: Any = None

    def zeros(self, name: str) -> Tensor:
        return torch.zeros(())

    def subscribe(self, observer: ForwardObserver, scale: Scale) -> None:
        observer.subscribe({}, on_model_input=self.on_model_input)

    def on_model_input(self, args: Any, kwargs: Any) -> None:
        """Store the shapes of the first input, which should be floating point, without the batch dimension."""
        if self.shapes is None:
            given = [*args, *kwargs.values()]
            if not given or not all(t.is_floating_point() for t in tensors_in(given)):
                raise TypeError("SynFlow needs a model of floating-point inputs: it sends ones through the network")
            self.shapes = {
                "args": [mapped(each, _shape) for each in args],
                "kwargs": {key: mapped(each, _shape) for key, each in kwargs.items()},
            }
            self.record.counts = dict.fromkeys(self.parameters, 1.0)

    def results(
        self, sums: Mapping[str, Tensor], counts: Mapping[str, float], masks: Mapping[str, Tensor | None]
    ) -> dict[str, Any]:
        r"""Return :math:`\partial R/\partial|\theta|` of every parameter, float64, under the masks."""
        if self.shapes is None:
            return {}
        values = {name: p.detach().double().abs() for name, p in self.model.named_parameters()}
        inside = {parameter: name for name, parameter in self.model.named_parameters()}  # a compiled part changes names
        if not self.need.bias:
            values |= {name: torch.zeros_like(v) for name, v in values.items() if name.rpartition(".")[2] == "bias"}
        for name, mask in masks.items():
            if mask is not None and name in self.parameters:
                values[inside[self.parameters[name]]] *= mask
        chosen = [values[inside[parameter]].requires_grad_() for parameter in self.parameters.values()]
        buffers = {n: b.double() if b.is_floating_point() else b for n, b in self.model.named_buffers()}
        args, kwargs = _ones(self.shapes["args"], chosen[0].device), _ones(self.shapes["kwargs"], chosen[0].device)
        with undisturbed(self.model):
            try:
                output = functional_call(self.model, {**values, **buffers}, tuple(args), kwargs)
            except RuntimeError as error:
                raise ValueError(f"SynFlow: the model does not take ones of shapes {self.shapes}: {error}") from error
            total = torch.stack([t.sum() for t in tensors_in(output) if t.is_floating_point()]).sum()
            found = torch.autograd.grad(total, chosen, allow_unused=True)
        return {name: g for name, g in zip(self.parameters, found) if g is not None}

    def extras(self) -> dict[str, Any]:
        return {"shapes": self.shapes}

    def checked(self, state: Any) -> dict[str, Any]:
        if not isinstance(state, Mapping) or "shapes" not in state:
            raise ValueError("The checkpoint's evidence is damaged: it lacks 'shapes'")
        return super().checked({**state, "sums": {}, "counts": {}})

    def check_extras(self, state: Mapping[str, Any]) -> None:
        if state["shapes"] is not None:
            inputs = checked_mapping("evidence 'shapes'", state["shapes"], ("args", "kwargs"))
            if not isinstance(inputs["args"], list) or not isinstance(inputs["kwargs"], Mapping):
                raise TypeError("The checkpoint's evidence 'shapes' should be a list 'args' and a mapping 'kwargs'")
            _ones(inputs["args"], torch.device("meta"))
            _ones(inputs["kwargs"], torch.device("meta"))

    def load_extras(self, state: Mapping[str, Any]) -> None:
        self.shapes = state["shapes"]
        self.record.counts = {} if self.shapes is None else dict.fromkeys(self.parameters, 1.0)


def _shape(tensor: Tensor) -> dict[str, list[int]]:
    return {"shape": list(tensor.shape[1:])}


def _ones(shapes: Any, device: torch.device) -> Any:
    """Return ones of a nest of shapes, for one sample; raise TypeError or ValueError if it is another nest."""
    if isinstance(shapes, Mapping) and set(shapes) == {"shape"}:
        sizes = shapes["shape"]
        if not isinstance(sizes, list):
            raise TypeError(f"The checkpoint's evidence 'shapes' should be lists of ints, but one is {type(sizes)}")
        checked_int("input size", math.prod(checked_int("input size", size) for size in sizes), 0, 2**40)
        return torch.ones(1, *sizes, dtype=torch.float64, device=device)
    if isinstance(shapes, Mapping):
        return {key: _ones(each, device) for key, each in shapes.items()}
    if isinstance(shapes, (list, tuple)):
        return [_ones(each, device) for each in shapes]
    if not (shapes is None or isinstance(shapes, bool | int | float | str)):
        raise TypeError(f"The checkpoint's evidence 'shapes' should be of plain values, but one is {type(shapes)}")
    return shapes
