"""Evidence from what enters a layer: norms and second moments of its inputs, a convolution's unfolded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ignite_prune.evidence.collectors.base import Gatherer, wide
from ignite_prune.evidence.collectors.gradients import check_memory
from ignite_prune.evidence.forward.layer_calls import Use
from ignite_prune.saliency.needs import Moments, Need

_PIECE = 1 << 18  # entries that stay in a core's cache


class InputGatherer(Gatherer):
    """What gatherers of inputs share.

    A sum is flat in the layer's inputs: ``groups × inputs of an output``. How a layer uses its weight, and so where the
    inputs lie in it, is known from its first use.

    Attributes:
        forms: groups of each layer, and whether its outputs lie along dim 1.
    """

    hears: ClassVar[frozenset[str]] = frozenset({"inputs"})

    def __init__(self, need: Need, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        self._refused: dict[str, str] = {}

    def inputs(self, name: str) -> int:
        """Return how many inputs an output of a layer has."""
        shape, (_, transposed) = self.parameters[name].shape, self.forms.get(name, (1, False))
        return shape[0] if transposed else math.prod(shape[1:])

    def kept_inputs(self, name: str, stay: Mapping[int, Tensor]) -> Tensor | None:
        """Return which inputs stay where the weight keeps these indices; None, nothing is known, in groups."""
        groups, transposed = self.forms.get(name, (1, False))
        if groups > 1 and stay:
            return None
        shape = self.parameters[name].shape
        places = torch.arange(shape[0]) if transposed else torch.arange(math.prod(shape[1:])).view(shape[1:])
        along = 0 if transposed else 1
        return places.index_select(0, stay[along].cpu()).flatten() if along in stay else places.flatten()

    def used(self, name: str, use: Use) -> None:
        refused = _refusal(use)
        if refused:
            self._refused[name] = refused
            return
        self.forms[name] = (use.groups, use.transposed)
        if not self.parameters[name].numel():  # nothing to score
            self.running(name)
            self.count(name)
            return
        self.add(name, use, tuple(self.parameters[name].shape[2:]))

    def add(self, name: str, use: Use, kernel: tuple[int, ...]) -> None:
        """Add a use's inputs."""
        raise NotImplementedError

    def reason(self, name: str) -> str:
        return self._refused.get(name) or super().reason(name)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "forms": {name: list(form) for name, form in self.forms.items()}}

    def checked(self, state: Any) -> dict[str, Any]:
        earlier, forms = self.forms, state.get("forms") if isinstance(state, Mapping) else None
        if not isinstance(forms, Mapping) or not set(forms) <= set(self.parameters):
            raise ValueError("The checkpoint's evidence is damaged: its 'forms' do not fit")
        self.forms = {name: (int(groups), bool(turned)) for name, (groups, turned) in forms.items()}
        try:
            return super().checked(state)
        finally:
            self.forms = earlier

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.forms = {name: (int(groups), bool(turned)) for name, (groups, turned) in state["forms"].items()}


def _refusal(use: Use) -> str | None:
    if use.rows is not None:
        return "only a part of it is used at a time (cross attention), each part with inputs of its own"
    if use.kind.startswith("conv_transpose"):
        return "it is the weight of a transposed convolution, which has no inputs of one output alone"
    return None


class InputNormSums(InputGatherer):
    """Gathers :class:`~ignite_prune.saliency.needs.InputNorms`: sums, squares and numbers, ``(3, groups × inputs)``.

    The answer is shaped to be broadcast against the weight: ``(3, 1, inputs)``, ``(3, inputs, 1)`` where the weight
    lies the other way round, and ``(3, out, inputs)`` for a grouped convolution.
    """

    def empty(self, name: str) -> Tensor:
        groups, _ = self.forms.get(name, (1, False))
        parameter = self.parameters[name]
        return torch.zeros(3, groups * self.inputs(name), dtype=wide(parameter), device=parameter.device)

    @torch.no_grad()
    def add(self, name: str, use: Use, kernel: tuple[int, ...]) -> None:
        running = self.running(name)
        x = use.input.detach().to(running.dtype)
        if not kernel:
            x = x.reshape(-1, x.shape[-1])
        elif x.ndim == len(kernel) + 1:
            x = x.unsqueeze(0)
        # Samples of a convolution add up before the kernel goes over them: there is less to go over.
        seen = input_windows(replace(use, input=_powers(x)), kernel)
        positions = range(1, seen.ndim - 1 - len(kernel))
        running[:2] += seen.sum(tuple(positions)).flatten(1) if positions else seen
        running[2] += math.prod(seen.shape[i] for i in positions) * len(x)
        self.count(name)

    def _cut(self, name: str, total: Tensor, stay: Mapping[int, Tensor]) -> Tensor | None:
        kept = self.kept_inputs(name, stay)
        return None if kept is None else total[:, kept]

    def answer(self, name: str, total: Tensor, count: float) -> Tensor:
        groups, transposed = self.forms[name]
        shape = self.parameters[name].shape
        if transposed:
            return total.view(3, shape[0], 1)
        if groups == 1:
            return total.view(3, 1, *shape[1:])
        return total.view(3, groups, *shape[1:]).repeat_interleave(shape[0] // groups, dim=1)


def _powers(x: Tensor) -> Tensor:
    """Return the sums of x and of its squares over dim 0, piece by piece, which stay in cache: no copy of x is made."""
    at_once = max(1, _PIECE // max(1, x[:1].numel()))
    sums = x.new_zeros(2, min(at_once, len(x)), *x.shape[1:])
    for part in torch.split(x, at_once):
        sums[0, : len(part)].add_(part)
        sums[1, : len(part)].addcmul_(part, part)
    return sums.sum(1)


class InputMomentSums(InputGatherer):
    r"""Gathers :class:`~ignite_prune.saliency.needs.InputMoments`: :math:`\sum x x^T`, ``(groups, inputs, inputs)``.

    How a layer's weight lies is known from its first use: until then the least that its moments may take is counted.

    Raises:
        ValueError: they would not fit in memory.
    """

    def __init__(self, need: Need, parameters: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(need, parameters, model)
        self._groups = _groups_of_modules(model, self.parameters)
        self._check(list(self.parameters))

    def empty(self, name: str) -> Tensor:
        self._check([name, *(other for other in self.parameters if other != name and other not in self.sums)])
        parameter = self.parameters[name]
        return torch.zeros(self._shape(name), dtype=wide(parameter), device=parameter.device)

    def _shape(self, name: str) -> tuple[int, int, int]:
        """Return the form of a layer's moments, the smallest there may be where it is not known."""
        shape, inputs = self.parameters[name].shape, self.inputs(name)
        if name in self.forms:
            return self.forms[name][0], inputs, inputs
        if name not in self._groups and len(shape) == 2:  # it may lie either way
            inputs = min(shape)
        return self._groups.get(name, 1), inputs, inputs

    def _check(self, names: list[str]) -> None:
        """Raise where the moments of these layers would not fit beside what there is."""
        sizes = {name: math.prod(self._shape(name)) * wide(self.parameters[name]).itemsize for name in names}
        largest = max(sizes, key=sizes.__getitem__)
        what = f"Second moments of the inputs of {len(names)} layer{'s' if len(names) > 1 else ''}"
        advice = f"leave out layers with many inputs by exclude= ({largest!r} has {self._shape(largest)[1]:,})"
        check_memory(sum(sizes.values()), self.parameters[largest].device, what, advice)

    @torch.no_grad()
    def add(self, name: str, use: Use, kernel: tuple[int, ...]) -> None:
        running = self.running(name)
        groups, inputs, _ = running.shape
        columns = input_windows(use, kernel).reshape(-1, groups * inputs)
        parts = columns.to(running.dtype).reshape(-1, groups, inputs).transpose(0, 1)
        running.baddbmm_(parts.transpose(1, 2), parts)
        self.count(name, columns.shape[0])

    def _cut(self, name: str, total: Tensor, stay: Mapping[int, Tensor]) -> Tensor | None:
        kept = self.kept_inputs(name, stay)
        return None if kept is None else total[:, kept][:, :, kept]

    def answer(self, name: str, total: Tensor, count: float) -> Moments:
        return Moments(total, 2 / count, bool(self.forms[name][1]))


def _groups_of_modules(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """Return the groups of each weight whose module tells how it lies: outputs along dim 0."""
    names, found = {parameter: name for name, parameter in parameters.items()}, {}
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            weight = module._parameters.get("weight")  # a parametrised one would be computed
            if weight is not None and weight in names:
                found[names[weight]] = 1 if isinstance(module, nn.Linear) else module.groups
    return found


def input_windows(use: Use, kernel: tuple[int, ...]) -> Tensor:
    """Return what a layer's outputs see, ``(samples, *positions, channels, *kernel)``: a view, nothing is copied."""
    x = use.input.detach()
    if not use.kind.startswith("conv"):
        return x
    spatial = len(kernel)
    if x.ndim == spatial + 1:  # a single sample
        x = x.unsqueeze(0)
    x = nn.functional.pad(x, _padding(use, kernel))
    for dim, (size, stride, dilation) in enumerate(zip(kernel, use.stride, use.dilation), start=2):
        x = x.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # (n, channels, *positions, *kernel) -> (n, *positions, channels, *kernel)
    order = [0, *range(2, 2 + spatial), 1, *range(2 + spatial, 2 + 2 * spatial)]
    return x.permute(order)


def _padding(use: Use, kernel: tuple[int, ...]) -> list[int]:
    """Return the padding as ``pad`` takes it, last dimension first."""
    if not isinstance(use.padding, str):
        return [p for each in reversed(use.padding) for p in (each, each)]
    if use.padding == "valid":
        return [0] * (2 * len(kernel))
    pads: list[int] = []
    for size, dilation in reversed(list(zip(kernel, use.dilation))):
        total = dilation * (size - 1)
        pads += [total // 2, total - total // 2]
    return pads
