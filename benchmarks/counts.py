"""Calls of operators and waits for the device: what an accelerator pays for, counted without one.

A training step runs on PyTorch's meta device, which has shapes but no data and is not the CPU, so the code for
accelerators runs; what it would read of the device is answered with 0. An update needs data, so it is counted on the
CPU, without NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ignite_prune import MaskStore, PruneHandler
from ignite_prune._utils import bits
from ignite_prune.core.mask_enforcer import MaskEnforcer
from rows import Row, Settings

_ATEN = torch.ops.aten
_READS = {_ATEN._local_scalar_dense, _ATEN.is_nonzero, _ATEN.equal, _ATEN.item}
_SIZES = {_ATEN.nonzero, _ATEN.masked_select, _ATEN._unique2, _ATEN.unique_consecutive, _ATEN.bincount}
_COPIES = {_ATEN._to_copy, _ATEN.copy_}
_SMALL, _LARGE = 2, 48  # parameters


class Counter(TorchDispatchMode):
    """Counts aten calls other than views, and those among them for which the host waits.

    Attributes:
        calls: operators that launch work.
        waits: values read by the host, results whose size depends on data, and copies to the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        if func.is_view or packet in (_ATEN.detach, _ATEN.empty, _ATEN.empty_like):
            return func(*args, **kwargs)
        self.calls += packet not in _READS
        self.waits += packet in _READS or packet in _SIZES or _by_mask(packet, args) or _to_host(packet, args, kwargs)
        if packet in _READS and args[0].is_meta:
            return 0
        if _by_mask(packet, args) and args[0].is_meta:
            return args[0].clone()
        return func(*args, **kwargs)


def _by_mask(packet: Any, args: Any) -> bool:
    """Return whether an index is a bool tensor, of which the device has to count the entries."""
    return packet is _ATEN.index and any(each is not None and each.dtype is torch.bool for each in args[1])


def _to_host(packet: Any, args: Any, kwargs: Any) -> bool:
    if packet not in _COPIES:
        return False
    if packet is _ATEN.copy_:
        return args[0].device.type == "cpu" != args[1].device.type
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cpu" != args[0].device.type


class _Net(nn.Module):
    """A chain of square matrices."""

    def __init__(self, matrices: int, device: str) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(128, 128, device=device) for _ in range(matrices))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x @ weight
        return x


def step_counts(parameters: int) -> tuple[int, int]:
    """Return calls and waits that the enforcement adds to the second training step on an accelerator."""
    pruned, dense = _second_step(parameters, True), _second_step(parameters, False)
    return pruned.calls - dense.calls, pruned.waits - dense.waits


def _second_step(parameters: int, pruned: bool) -> Counter:
    model = _Net(parameters, "meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
    inputs = torch.empty(8, 128, device="meta")
    masks = MaskStore(dict(model.named_parameters()))
    enforcer = MaskEnforcer(masks, [optimizer])
    if pruned:
        with Counter():  # answers what counting the entries reads
            halves = {name: torch.empty_like(p, dtype=torch.bool) for name, p in masks.parameters.items()}
            masks.put(masks.replaced(halves))
        enforcer.install()
    for _ in range(2):
        with Counter() as counter:
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    return counter


def update_counts(parameters: int) -> tuple[int, int]:
    """Return calls and waits of one update, dense to 90 %, by the code that does not use NumPy."""
    model = _Net(parameters, "cpu")
    pruner = PruneHandler(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), params="*")
    with mock.patch.object(bits, "_numpy", lambda: None), Counter() as counter:
        pruner.step(0.9)
    return counter.calls, counter.waits


def counts(settings: Settings) -> Iterator[Row]:
    """Yield calls and waits of a step's enforcement and of an update, with few and with many parameters."""
    kinds: dict[str, Callable[[int], tuple[int, int]]] = {
        "a step's enforcement on an accelerator": step_counts,
        "an update (counted on the CPU)": update_counts,
    }
    for what, count in kinds.items():
        for number in (_SMALL, _LARGE):
            calls, waits = count(number)
            yield Row(f"{what}, {number} parameters: calls of operators", calls, "calls")
            at_most = 0 if count is step_counts else 4
            yield Row("  waits for the device", waits, "waits", at_most=at_most)
