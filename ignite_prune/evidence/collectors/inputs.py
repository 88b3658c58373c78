"""Evidence from the inputs of layers: norms and second moments; a convolution's inputs are unfolded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ignite_prune._utils.free_memory import check_memory
from ignite_prune._utils.kept import Kept
from ignite_prune._utils.state import checked_int, checked_mapping
from ignite_prune.evidence.collectors.base import Collector, N, Scale
from ignite_prune.evidence.collectors.input_shards import InputShards, own_input
from ignite_prune.evidence.forward.layer_calls import LayerCall
from ignite_prune.evidence.forward.observer import ForwardObserver
from ignite_prune.evidence.running_sums import Forms, sum_dtype, zeros_over
from ignite_prune.saliency.needs import InputMoments, InputNorms, Moments

_PIECE = 1 << 18  # entries that stay in a core's cache


class InputCollector(Collector[N]):
    """Base of collectors of layer inputs.

    A sum is flat in the layer's inputs: ``groups × inputs of an output``. A layer's first call shows how it uses its
    weight; ``record.forms`` holds the groups, and whether dim 1 holds the outputs.

    Attributes:
        whole_columns: whether a sum needs all inputs of an output together.
    """

    whole_columns: ClassVar[bool] = False

    def inputs(self, name: str) -> int:
        """Return the number of inputs of one output of a layer."""
        shape, (_, transposed) = self.parameters[name].shape, self.form(name)
        return shape[0] if transposed else math.prod(shape[1:])

    def form(self, name: str) -> tuple[int, ...]:
        """Return a layer's groups and whether dim 1 of its weight holds the outputs."""
        return self.record.forms.get(name, (1, False))

    def kept_inputs(self, name: str, kept: Kept) -> Tensor | None:
        """Return the inputs that are kept with these indices of the weight; None for a grouped layer."""
        groups, transposed = self.form(name)
        if groups > 1 and kept:
            return None
        shape, along = self.parameters[name].shape, 0 if transposed else 1
        places = torch.arange(shape[0]) if transposed else torch.arange(math.prod(shape[1:])).view(shape[1:])
        return places.index_select(0, kept[along].cpu()).flatten() if along in kept else places.flatten()

    @cached_property
    def shards(self) -> InputShards:
        """Which layers have inputs that lie on several ranks."""
        return InputShards()

    def settle(self) -> None:
        for name in self.shards.copies():
            self.record.sums.pop(name, None)
            self.record.counts.pop(name, None)

    def subscribe(self, observer: ForwardObserver, scale: Scale) -> None:
        observer.subscribe(self.parameters, on_layer_call=self.on_layer_call, on_end=self.on_forward_end)

    def on_layer_call(self, name: str, call: LayerCall) -> None:
        """Called before a layer runs."""
        parameter = self.parameters[name]
        if call.rows is not None:
            self.refused[name] = "only a part of it is used at a time (cross attention), each with inputs of its own"
        elif call.kind.startswith("conv_transpose"):
            self.refused[name] = "it is the weight of a transposed convolution, which has no inputs of one output alone"
        elif call.input.numel() or not parameter.numel():
            self.record.forms[name] = (call.groups, call.transposed)
            running, kernel = self.running(name), tuple(parameter.shape[2:])
            self.shards.see(name, call)
            call, columns, adds = own_input(call, len(kernel), self.whole_columns)
            if adds:  # without entries there is nothing to score
                added = self.add(running[..., columns], call, kernel) if parameter.numel() else 1.0
                self.record.count(name, added)
        else:
            self.missed[name] = "its calls had no rows, as those of an expert without tokens"

    def add(self, running: Tensor, call: LayerCall, kernel: tuple[int, ...]) -> float:
        """Add the inputs of a layer call to its sum; return how many it adds to the count."""
        raise NotImplementedError

    def extras(self) -> dict[str, Any]:
        return {"forms": {name: list(form) for name, form in self.record.forms.items()}}

    def checked_forms(self, state: Mapping[str, Any]) -> Forms:
        forms = checked_mapping("evidence 'forms'", state.get("forms"), self.parameters, whole=False)
        for name, form in forms.items():
            if not isinstance(form, list | tuple) or len(form) != 2 or type(form[1]) not in (bool, int):
                raise ValueError(f"The checkpoint's evidence is damaged: 'forms' of {name!r} is {form!r:.60}")
            checked_int(f"groups of {name!r}", form[0], 1, max(1, *self.parameters[name].shape))
        return {name: (groups, bool(transposed)) for name, (groups, transposed) in forms.items()}

    def check_extras(self, state: Mapping[str, Any]) -> None:
        checked_mapping("evidence 'sums'", state["sums"], state["forms"], whole=False)


class InputNormSums(InputCollector[InputNorms]):
    """Collects :class:`~ignite_prune.saliency.needs.InputNorms`: sums, squares and numbers, ``(3, groups × inputs)``.

    The result broadcasts against the weight: ``(3, 1, inputs)``, ``(3, inputs, 1)`` for a transposed weight, and
    ``(3, out, inputs)`` for a grouped convolution.
    """

    def zeros(self, name: str) -> Tensor:
        return zeros_over(self.parameters[name], (3, self.form(name)[0] * self.inputs(name)))

    @torch.no_grad()
    def add(self, running: Tensor, call: LayerCall, kernel: tuple[int, ...]) -> float:
        x = call.input.detach().to(running)
        if not kernel:
            x = x.reshape(-1, x.shape[-1])
        elif x.ndim == len(kernel) + 1:
            x = x.unsqueeze(0)
        # The samples of a convolution are summed before they are unfolded, which is less work.
        seen = input_windows(replace(call, input=_powers(x)), kernel)
        positions = range(1, seen.ndim - 1 - len(kernel))
        running[:2] += seen.sum(tuple(positions)).flatten(1) if positions else seen
        running[2] += math.prod(seen.shape[i] for i in positions) * len(x)
        return 1.0

    def cut(self, name: str, total: Tensor, kept: Kept) -> Tensor | None:
        inputs = self.kept_inputs(name, kept)
        return None if inputs is None else total[:, inputs]

    def result(self, name: str, total: Tensor, count: float) -> Tensor:
        groups, transposed = self.record.forms[name]
        shape = self.parameters[name].shape
        if transposed:
            return total.view(3, shape[0], 1)
        if groups == 1:
            return total.view(3, 1, *shape[1:])
        return total.view(3, groups, *shape[1:]).repeat_interleave(shape[0] // groups, dim=1)


def _powers(x: Tensor) -> Tensor:
    """Return the sums of x and of its squares over dim 0, computed in pieces that fit into the cache."""
    at_once = max(1, _PIECE // max(1, x[:1].numel()))
    sums = x.new_zeros(2, min(at_once, len(x)), *x.shape[1:])
    for part in torch.split(x, at_once):
        sums[0, : len(part)].add_(part)
        sums[1, : len(part)].addcmul_(part, part)
    return sums.sum(1)


class InputMomentSums(InputCollector[InputMoments]):
    r"""Collects :class:`~ignite_prune.saliency.needs.InputMoments`: :math:`\sum x x^T`, ``(groups, inputs, inputs)``.

    The first call of a layer shows the shape; until then memory is checked for the smallest one possible.
    """

    whole_columns = True

    def prepare(self) -> None:
        self._groups = _groups_of_modules(self.model, self.parameters)
        self._check(list(self.parameters))

    def zeros(self, name: str) -> Tensor:
        self._check([name, *(other for other in self.parameters if other != name and other not in self.record.sums)])
        return zeros_over(self.parameters[name], self._shape(name))

    def _shape(self, name: str) -> tuple[int, int, int]:
        """Return the shape of a layer's moments, or the smallest possible one."""
        shape, inputs = self.parameters[name].shape, self.inputs(name)
        if name in self.record.forms:
            return self.record.forms[name][0], inputs, inputs
        if name not in self._groups and len(shape) == 2:  # it may be transposed
            inputs = min(shape)
        return self._groups.get(name, 1), inputs, inputs

    def _check(self, names: list[str]) -> None:
        """Raise if the moments of these layers would not fit into the free memory."""
        sizes = {name: math.prod(self._shape(name)) * sum_dtype(self.parameters[name]).itemsize for name in names}
        largest = max(sizes, key=sizes.__getitem__)
        what = f"Second moments of the inputs of {len(names)} layer{'s' if len(names) > 1 else ''}"
        advice = f"leave out layers with many inputs by exclude= ({largest!r} has {self._shape(largest)[1]:,})"
        check_memory(sum(sizes.values()), self.parameters[largest].device, what, advice)

    @torch.no_grad()
    def add(self, running: Tensor, call: LayerCall, kernel: tuple[int, ...]) -> float:
        groups, inputs, _ = running.shape
        columns = input_windows(call, kernel).reshape(-1, groups * inputs)
        parts = columns.to(running).reshape(-1, groups, inputs).transpose(0, 1)
        running.baddbmm_(parts.transpose(1, 2), parts)
        return columns.shape[0]

    def cut(self, name: str, total: Tensor, kept: Kept) -> Tensor | None:
        inputs = self.kept_inputs(name, kept)
        return None if inputs is None else total[:, inputs][:, :, inputs]

    def result(self, name: str, total: Tensor, count: float) -> Moments:
        return Moments(total, 2 / count, bool(self.record.forms[name][1]))


def _groups_of_modules(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """Return the groups of each weight of a layer module, which has its outputs along dim 0."""
    names, found = {parameter: name for name, parameter in parameters.items()}, {}
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            weight = module._parameters.get("weight")  # None for a parametrised one, which is computed
            if weight is not None and weight in names:
                found[names[weight]] = 1 if isinstance(module, nn.Linear) else module.groups
    return found


def input_windows(call: LayerCall, kernel: tuple[int, ...]) -> Tensor:
    """Return the inputs of each output, ``(samples, *positions, channels, *kernel)``, as a view."""
    x = call.input.detach()
    if not call.kind.startswith("conv"):
        return x
    spatial = len(kernel)
    if x.ndim == spatial + 1:  # a single sample
        x = x.unsqueeze(0)
    x = nn.functional.pad(x, _padding(call, kernel))
    for dim, (size, stride, dilation) in enumerate(zip(kernel, call.stride, call.dilation), start=2):
        x = x.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # (n, channels, *positions, *kernel) -> (n, *positions, channels, *kernel)
    order = [0, *range(2, 2 + spatial), 1, *range(2 + spatial, 2 + 2 * spatial)]
    return x.permute(order)


def _padding(call: LayerCall, kernel: tuple[int, ...]) -> list[int]:
    """Return the padding as ``pad`` takes it, last dimension first."""
    if isinstance(call.padding, str):
        totals = [d * (size - 1) if call.padding == "same" else 0 for size, d in zip(kernel, call.dilation)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(each, each) for each in call.padding]
    return [p for pair in reversed(sides) for p in pair]
