"""Evidence from gradients: running sums, and the blocks of the Fisher matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ignite_prune._utils.free_memory import check_memory
from ignite_prune._utils.kept import Kept
from ignite_prune._utils.shard import local
from ignite_prune._utils.state import checked_mapping, checked_tensor
from ignite_prune.core.selection import inputs_first, named_parameters
from ignite_prune.evidence.collectors.base import Collector, N
from ignite_prune.evidence.running_sums import sum_dtype, zeros_over
from ignite_prune.saliency.needs import Fisher, FisherBlocks, Gradients
from ignite_prune.saliency.obs import add_outer_


class GradientCollector(Collector[N]):
    """Base of collectors of gradients."""

    replicated = True
    by_part = True
    backward = True
    of_gradients = True
    unreached = "it got no gradient: the loss does not depend on it"
    unseen = "no gradient has been seen yet"


class GradientSums(GradientCollector[Gradients]):
    """Collects :class:`~ignite_prune.saliency.needs.Gradients`."""

    def prepare(self) -> None:
        self.lasting, self.per_sample = self.need.memory.lasting, self.need.per_sample
        self._inputs_first = inputs_first(self.model) if self.need.by_unit else frozenset[str]()
        self._biases = self._own_biases() if self.need.by_unit else {}
        self.differentiated = {**self.parameters, **dict(self._biases.values())}

    def zeros(self, name: str) -> Tensor:
        shape = self._units(name) if self.need.by_unit else None
        return zeros_over(self.parameters[name], shape, self.need.memory.dtype)

    def _units(self, name: str) -> torch.Size:
        """Return the number of a weight's units, as a shape."""
        dim = int(name in self._inputs_first)
        return self.parameters[name].shape[dim : dim + 1]

    def _own_biases(self) -> dict[str, tuple[str, nn.Parameter]]:
        """Return name and parameter of each weight's bias, if it has one entry for each output."""
        everything, found = named_parameters(self.model), {}
        for name in self.parameters:
            head, dot, leaf = name.rpartition(".")
            bias_name = f"{head}{dot}{leaf.replace('weight', 'bias')}"
            bias = everything.get(bias_name)
            if bias is not None and bias_name != name and bias.shape == self._units(name):
                found[name] = (bias_name, bias)
        return found

    @torch.no_grad()
    def on_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        decay = self.need.memory.decay
        for name in filter(gradients.__contains__, self.parameters):
            running = self.running(name)
            if decay != 1:
                running.mul_(decay)
            gradient, weight = gradients[name], local(self.parameters[name].detach())
            if self.need.by_unit:
                gradient, weight = self._by_unit(name, gradient, weight, gradients)
            after = self.need.term(running, gradient.to(running.dtype), weight.to(running.dtype))
            if not isinstance(after, Tensor) or after.shape != running.shape:
                given = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
                raise TypeError(
                    f"The term of {self.need.key!r} should return the new sum, a Tensor of {tuple(running.shape)}, but "
                    f"gave {given}"
                )
            self.record.sums[name] = after
            self.record.count(name, decay=decay)

    def _by_unit(self, name: str, gradient: Tensor, weight: Tensor, gradients: Mapping[str, Tensor]) -> Any:
        dtype = sum_dtype(weight)
        product = gradient.to(dtype) * weight.to(dtype)
        product = product.transpose(0, 1) if name in self._inputs_first else product
        product = product.flatten(1).sum(1) if product.ndim > 1 else product  # a vector's units are its entries
        if name in self._biases and self._biases[name][0] in gradients:
            bias_name, bias = self._biases[name]
            product += gradients[bias_name].to(dtype) * bias.detach().to(dtype)
        return product, torch.ones_like(product)

    def result(self, name: str, total: Tensor, count: float) -> Tensor:
        return total / count if self.need.mean else total


_AT_ONCE = 4


class FisherBlockSums(GradientCollector[FisherBlocks]):
    """Collects :class:`~ignite_prune.saliency.needs.FisherBlocks`.

    Gradients are added a few at a time, so that the large blocks are read less often; pending ones are in the state.
    """

    def prepare(self) -> None:
        self.differentiated, self.per_sample = self.parameters, self.need.per_sample
        self._waiting: dict[str, list[Tensor]] = {}
        parameters = self.parameters.values()
        size = sum(math.prod(self._shape(name)) * sum_dtype(p).itemsize for name, p in self.parameters.items())
        what = f"Fisher blocks of {self.need.block} over {sum(p.numel() for p in parameters):,} weights"
        check_memory(size, next(iter(parameters)).device, what, "take fewer parameters, or smaller blocks")

    def _shape(self, name: str) -> tuple[int, int, int]:
        """Return the shape of a parameter's blocks, the last one padded."""
        entries = self.parameters[name].numel()
        block = max(1, min(self.need.block, entries))
        return -(-entries // block), block, block

    def zeros(self, name: str) -> Tensor:
        return zeros_over(self.parameters[name], self._shape(name))

    @torch.no_grad()
    def on_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        for name in filter(gradients.__contains__, self.parameters):
            running, waiting = self.running(name), self._waiting.setdefault(name, [])
            waiting.append(gradients[name].detach().reshape(-1).to(running.dtype, copy=True))
            self.record.count(name)
            if len(waiting) == _AT_ONCE:
                self._settle(name)

    def _settle(self, name: str) -> None:
        if waiting := self._waiting.pop(name):
            add_outer_(self.running(name), waiting)

    def settle(self) -> None:
        for name in list(self._waiting):
            self._settle(name)

    def reset(self) -> None:
        super().reset()
        self._waiting = {}

    def result(self, name: str, total: Tensor, count: float) -> Fisher:
        return Fisher(total, count)

    def sliced_state(self, indices: Mapping[str, Kept], sums: bool = True) -> dict[str, Any]:
        state = super().sliced_state(indices, sums)
        waiting = {name: held for name, held in state.get("waiting", {}).items() if name in state["sums"]}
        return {**state, "waiting": waiting} if state else state

    def extras(self) -> dict[str, Any]:
        return {"waiting": {name: torch.stack(held) for name, held in self._waiting.items() if held}}

    def check_extras(self, state: Mapping[str, Any]) -> None:
        waiting = checked_mapping("evidence 'waiting'", state.get("waiting"), state["sums"], whole=False)
        for name, held in waiting.items():
            what, parameter = f"evidence of {name!r}", self.parameters[name]
            rows = checked_tensor(what, held).shape[:1]
            checked_tensor(what, held, shape=(*rows, parameter.numel()), dtype=sum_dtype(parameter))

    def load_extras(self, state: Mapping[str, Any]) -> None:
        self._waiting = {
            name: list(held.detach().to(self.parameters[name].device, copy=True))
            for name, held in state["waiting"].items()
        }
