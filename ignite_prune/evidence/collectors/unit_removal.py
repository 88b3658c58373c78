"""Evidence from removing units: Shapley values by sampled orders, or by every coalition of a small layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ignite_prune.core.batches import Batch
from ignite_prune.evidence.collectors.base import Collector
from ignite_prune.evidence.forward.replay import PassReplay
from ignite_prune.evidence.running_sums import sum_dtype
from ignite_prune.saliency.needs import UnitRemoval

LossWith = Callable[[Tensor], float]
"""The loss with some units kept: takes a bool tensor ``(units,)``, True = kept."""


class UnitRemovalValues(Collector[UnitRemoval]):
    """Collects :class:`~ignite_prune.saliency.needs.UnitRemoval`: a row of values an order, ``(orders, units)``."""

    probes = True
    unseen = "nothing has been gathered yet"

    def zeros(self, name: str) -> Tensor:
        units = self.parameters[name].shape[0]
        return torch.zeros(1 if units <= self.need.exact else self.need.samples, units, dtype=torch.float64)

    def orders(self, name: str) -> Tensor:
        """Return the orders in which a layer's units are removed, ``(orders, units)``."""
        # A seed for each layer: its values do not depend on which other layers are evaluated.
        seed = (self.need.seed + sum(name.encode()) * 1_000_003) % 2**62
        generator = torch.Generator().manual_seed(seed)
        return antithetic_orders(self.parameters[name].shape[0], self.need.samples, generator)

    @torch.no_grad()
    def on_batch(self, batch: Batch) -> None:
        # The loss is checked afterwards: a check in Python would end the recording.
        x = dict(batch.x) if isinstance(batch.x, Mapping) else batch.x
        replay = PassReplay(batch.model, lambda x: batch.given(x).loss(finite=False), x, self.parameters)
        if not torch.isfinite(replay.result).all():
            raise ValueError(f"The loss of a calibration batch is {replay.result.item()}: nothing can be judged by it")
        self.refused |= dict.fromkeys(replay.repeated, "its layer is used more than once in a forward pass")
        for name, point in replay.points.items():
            if point.value.shape[point.dim] != self.parameters[name].shape[0]:
                self.refused[name] = "its dim 0 does not number its outputs"
            if name in self.refused:
                continue
            evaluate, running, units = _evaluator(replay, name), self.running(name), self.parameters[name].shape[0]
            is_exact = units <= self.need.exact
            values = exact_values(evaluate, units) if is_exact else sampled_values(evaluate, self.orders(name))
            running += (values * batch.size).to(running.device)
            self.record.count(name, batch.size)

    def result(self, name: str, total: Tensor, count: float) -> Tensor:
        parameter = self.parameters[name]
        return (total.mean(0) / count).to(parameter.device, sum_dtype(parameter))


def _evaluator(replay: PassReplay, name: str) -> LossWith:
    """Return the loss as a function of a layer's kept units."""
    run = replay.replay if replay.is_exact(name) else replay.rerun
    point = replay.points[name]

    def loss(kept: Tensor) -> float:
        along = kept.to(point.value.device, point.value.dtype).view(-1, *(1,) * (-point.dim - 1))
        found = run(name, point.value * along)
        if found is None:
            raise ValueError(
                f"Shapley cannot remove units of {name!r}: the forward pass does not go the same way twice (it "
                "depends on the data, or on random numbers)"
            )
        return float(found)

    return loss


def antithetic_orders(units: int, samples: int, generator: torch.Generator) -> Tensor:
    """Return random orders of units, each followed by its reverse.

    Example:
        >>> antithetic_orders(3, 2, torch.Generator().manual_seed(0)).tolist()
        [[2, 0, 1], [1, 0, 2]]
    """
    drawn = [torch.randperm(units, generator=generator) for _ in range(-(-samples // 2))]
    return torch.stack([order for one in drawn for order in (one, one.flip(0))][:samples])


def sampled_values(loss: LossWith, orders: Tensor) -> Tensor:
    """Return the increases of the loss as each order's units are removed one by one, ``(orders, units)``, float64."""
    values = torch.zeros(orders.shape, dtype=torch.float64)
    kept = torch.ones(orders.shape[1], dtype=torch.bool)
    full, nothing = loss(kept), loss(~kept)
    for row, order in zip(values, orders.tolist()):
        kept.fill_(True)
        before = full
        for position, unit in enumerate(order):
            kept[unit] = False
            after = loss(kept) if position + 1 < len(order) else nothing
            row[unit] = after - before
            before = after
    return values


def exact_values(loss: LossWith, units: int) -> Tensor:
    """Return the Shapley values from all ``2^units`` coalitions, ``(1, units)``, float64."""
    losses = [
        loss(torch.tensor([bool(coalition >> unit & 1) for unit in range(units)])) for coalition in range(1 << units)
    ]
    values = torch.zeros(1, units, dtype=torch.float64)
    for unit in range(units):
        for coalition in range(1 << units):
            if coalition >> unit & 1:
                others = coalition.bit_count() - 1
                share = math.factorial(others) * math.factorial(units - others - 1) / math.factorial(units)
                values[0, unit] += share * (losses[coalition ^ 1 << unit] - losses[coalition])
    return values
